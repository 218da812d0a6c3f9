"""RazorAttention: heads that retrieve keep everything, the others sinks and the latest rows.

Source: Tang et al., RazorAttention: Efficient KV Cache Compression Through Retrieval Heads
(arXiv 2407.15891). Which heads retrieve is found by a probe of the model (`headwise calibrate`).
The paper puts one row in the place of all that a head drops, the mean of their keys and values
with log N added to its logit; no row of this cache has a weight yet, so that row is left out.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from kvstore.cache import LayerShape
from kvstore.plans import AttentionProfile, LayerFacts, LayerPlan, ProfileRequest, PromptFacts
from kvstore.policies.base import Scope
from kvstore.policies.parameters import share, to_parameters, tokens
from kvstore.policies.selection import head_plan
from kvstore.rules import RetentionRule


@dataclasses.dataclass(frozen=True, slots=True)
class RazorAttention:
    """The other heads keep `sinks` rows and the last `tokens / shrink`, at least `least_window`.

    `retrieval_ratio`: the share of KV heads, best at retrieving, that keep everything. Prompts of
    up to `least_window` tokens are kept whole, by the paper's default all of up to 4,000.
    """

    name: ClassVar[str] = "razor_attention"
    scope: ClassVar[Scope] = Scope.LAYER
    uses_filters: ClassVar[bool] = False

    retrieval_ratio: float = share(0.15)
    shrink: int = tokens(5, least=1)
    least_window: int = tokens(4000, least=1)
    sinks: int = tokens(4)
    floor_rows: int = tokens(32)

    def parameters(self) -> dict[str, object]:
        return to_parameters(self)

    def profile_request(self, tokens: int, shape: LayerShape) -> ProfileRequest | None:
        return None

    def plan(
        self, profile: AttentionProfile | None, prompt: PromptFacts, layer: LayerFacts
    ) -> LayerPlan:
        rule = RetentionRule(
            horizon=layer.shape.sliding_window or 0,
            sinks=self.sinks,
            window=max(self.least_window, prompt.tokens // self.shrink),
            floor_rows=self.floor_rows,
        )
        head = head_plan(rule, None, prompt, 0.0)
        return LayerPlan(layer.shape, (head,) * layer.shape.kv_heads)

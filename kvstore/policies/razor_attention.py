"""RazorAttention: heads that retrieve keep everything, the others sinks and the latest rows.

Source: Tang et al., RazorAttention: Efficient KV Cache Compression Through Retrieval Heads
(arXiv 2407.15891). Which heads retrieve is found by a probe of the model (`headwise calibrate`).
In the place of the N tokens that another head drops stands one row, the mean of their keys and of
their values, with log N added to its logit. It has the position of the first of them and never
leaves. Tokens that leave the window while decoding are dropped without one, since rules cannot
merge; and a layer with a sliding window of its own, which forgets by position, has none.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from kvstore.cache import LayerShape
from kvstore.plans import (
    AttentionProfile,
    HeadPlan,
    LayerFacts,
    LayerPlan,
    ProfileRequest,
    PromptFacts,
)
from kvstore.policies.base import Scope
from kvstore.policies.parameters import flag, share, to_parameters, tokens
from kvstore.policies.row_merging import merge_rows
from kvstore.policies.selection import head_plan
from kvstore.rules import RetentionRule


@dataclasses.dataclass(frozen=True, slots=True)
class RazorAttention:
    """The other heads keep `sinks` rows and the last `tokens / shrink`, at least `least_window`.

    `retrieval_ratio`: the share of KV heads, best at retrieving, that keep everything. Prompts of
    up to `least_window` tokens are kept whole, by the paper's default all of up to 4,000.
    `compensation`: whether a row stands for what is dropped.
    """

    name: ClassVar[str] = "razor_attention"
    scope: ClassVar[Scope] = Scope.LAYER
    uses_filters: ClassVar[bool] = False
    uses_sensitivity: ClassVar[bool] = False
    weighs_rows: ClassVar[bool] = True

    retrieval_ratio: float = share(0.15)
    shrink: int = tokens(5, least=1)
    least_window: int = tokens(4000, least=1)
    sinks: int = tokens(4)
    floor_rows: int = tokens(32)
    compensation: bool = flag(True)

    def parameters(self) -> dict[str, object]:
        return to_parameters(self)

    def profile_request(self, tokens: int, shape: LayerShape) -> ProfileRequest | None:
        dropped = tokens - self.sinks - self._rule(tokens, shape).recent_rows
        if not self.compensation or shape.sliding_window is not None or dropped <= 0:
            return None
        return ProfileRequest(edges=(), keys=True, values=True)

    def plan(
        self, profile: AttentionProfile | None, prompt: PromptFacts, layer: LayerFacts
    ) -> LayerPlan:
        rule = self._rule(prompt.tokens, layer.shape)
        head = head_plan(rule, None, prompt, 0.0)
        if profile is None or profile.keys is None or profile.values is None:
            return LayerPlan(layer.shape, (head,) * layer.shape.kv_heads)
        # one more of the first positions: there the row that stands for the others is
        rule = dataclasses.replace(rule, sinks=self.sinks + 1)
        compensated = (
            head if number in layer.uncompressed_heads else _compensated(head, rule, k, v)
            for number, (k, v) in enumerate(zip(profile.keys, profile.values, strict=True))
        )
        return LayerPlan(layer.shape, tuple(compensated))

    def _rule(self, tokens: int, shape: LayerShape) -> RetentionRule:
        return RetentionRule(
            horizon=shape.sliding_window or 0,
            sinks=self.sinks,
            window=max(self.least_window, tokens // self.shrink, self.floor_rows - self.sinks),
            floor_rows=self.floor_rows,
        )


def _compensated(plan: HeadPlan, rule: RetentionRule, k: torch.Tensor, v: torch.Tensor) -> HeadPlan:
    """`plan` with a row more, of all that it drops of `k` and `v` `[T, D]`."""
    dropped = torch.ones(len(k), dtype=torch.bool)
    dropped[plan.rows.cpu()] = False
    first = int(dropped.nonzero()[0])
    kept = ~dropped
    kept[first] = True
    # tokens go into the row before them; all that are dropped follow the first of them
    owners = (kept.cumsum(0) - 1).to(k.device)
    rows = kept.nonzero().squeeze(1)
    return HeadPlan(rule, rows, None, plan.attention_coverage, merge_rows(k, v, owners, len(rows)))

"""StreamingLLM: the first tokens and the latest ones.

Source: Xiao et al., Efficient Streaming Language Models with Attention Sinks (arXiv 2309.17453).
The paper counts positions inside the cache, so that a stream may outgrow the model's context.
Here rows keep their original positions, as in every cache of this project: within the context
both are the same keys at other distances, beyond it this one cannot go.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from kvstore.cache import LayerShape
from kvstore.plans import AttentionProfile, LayerFacts, LayerPlan, ProfileRequest, PromptFacts
from kvstore.policies.budgeted import Budgeted
from kvstore.policies.selection import full_plan, head_plan
from kvstore.rules import RetentionRule


@dataclasses.dataclass(frozen=True, slots=True)
class StreamingLLM(Budgeted):
    """Sinks and a window that slides while decoding; nothing is profiled."""

    name: ClassVar[str] = "streaming_llm"

    def profile_request(self, tokens: int, shape: LayerShape) -> ProfileRequest | None:
        return None

    def plan(
        self, profile: AttentionProfile | None, prompt: PromptFacts, layer: LayerFacts
    ) -> LayerPlan:
        if self.keeps_everything():
            return full_plan(prompt, layer.shape)
        rule = RetentionRule(
            horizon=layer.shape.sliding_window or 0,
            sinks=self.sinks,
            window=max(0, self.rows(prompt, layer) - self.sinks),
            floor_rows=self.floor_rows,
        )
        head = head_plan(rule, None, prompt, 0.0)
        return LayerPlan(layer.shape, (head,) * layer.shape.kv_heads)

"""CItruS: what the instruction at the prompt's end attends to, the same for all heads.

Source: Bai et al., CItruS: Chunked Instruction-aware State Eviction (arXiv 2406.12018). The paper
reads a long document in chunks, lets the instruction vote after each, averaged over heads, and
goes on with what is left, its positions counted inside the cache. Here the prompt's forward pass
is exact and positions are original, so the instruction votes once, over the whole document. Where
it begins only the caller knows: `instruction_tokens` of the prompt's end are taken for it.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from kvstore.cache import LayerShape
from kvstore.plans import AttentionProfile, LayerFacts, LayerPlan, ProfileRequest, PromptFacts
from kvstore.policies.budgeted import Budgeted, with_first_and_last
from kvstore.policies.parameters import tokens
from kvstore.policies.selection import chosen_plan, full_plan


@dataclasses.dataclass(frozen=True, slots=True)
class CItruS(Budgeted):
    """The instruction itself stays."""

    name: ClassVar[str] = "citrus"

    instruction_tokens: int = tokens(64, least=1)

    def profile_request(self, tokens: int, shape: LayerShape) -> ProfileRequest | None:
        if self.keeps_everything():
            return None
        return ProfileRequest(recent_rows=self.instruction_tokens)

    def plan(
        self, profile: AttentionProfile | None, prompt: PromptFacts, layer: LayerFacts
    ) -> LayerPlan:
        if profile is None:
            return full_plan(prompt, layer.shape)
        votes = profile.accumulated().mean((0, 1)).expand(layer.shape.kv_heads, -1)
        scores = with_first_and_last(votes, self.sinks, self.instruction_tokens, prompt, layer)
        counts = [self.rows(prompt, layer)] * layer.shape.kv_heads
        return chosen_plan(scores, counts, prompt, layer.shape, profile)

"""SnapKV: what the prompt's last tokens attend to, chosen once.

Source: Li et al., SnapKV: LLM Knows What You Are Looking for Before Generation (arXiv 2404.14469).
An observation window of the last tokens votes: the probabilities they give to each earlier token
are summed, smoothed by pooling over neighbouring positions, and the tokens of highest vote stay
beside the window itself. Generated tokens all stay. The paper compresses in prefill alone and per
query head; here the mean over the G query heads of a KV head votes. Pooling takes the maximum, of
the two kinds the authors offer the one that keeps a token together with its neighbours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch

from kvstore.cache import LayerShape
from kvstore.plans import AttentionProfile, LayerFacts, LayerPlan, ProfileRequest, PromptFacts
from kvstore.policies.budgeted import Budgeted, with_first_and_last
from kvstore.policies.parameters import tokens
from kvstore.policies.selection import chosen_plan, full_plan


@dataclasses.dataclass(frozen=True, slots=True)
class SnapKV(Budgeted):
    """`window`: the tokens that vote, and stay. `pool`: positions that share a vote, odd."""

    name: ClassVar[str] = "snapkv"

    window: int = tokens(64, least=1)
    pool: int = tokens(7, least=1)

    def profile_request(self, tokens: int, shape: LayerShape) -> ProfileRequest | None:
        if self.keeps_everything():
            return None
        return ProfileRequest(recent_rows=self.window)

    def plan(
        self, profile: AttentionProfile | None, prompt: PromptFacts, layer: LayerFacts
    ) -> LayerPlan:
        if profile is None:
            return full_plan(prompt, layer.shape)
        votes = pooled(profile.accumulated().mean(1), self.pool)
        scores = with_first_and_last(votes, self.sinks, self.window, prompt, layer)
        return chosen_plan(scores, self.counts(scores, prompt, layer), prompt, layer.shape, profile)

    def counts(self, scores: torch.Tensor, prompt: PromptFacts, layer: LayerFacts) -> Sequence[int]:
        """Rows for each head of the layer; `scores` `[H, T]`."""
        return [self.rows(prompt, layer)] * layer.shape.kv_heads


def pooled(scores: torch.Tensor, width: int) -> torch.Tensor:
    """Each column's highest score within `width // 2` positions, `[H, T]`."""
    reach = width // 2
    return torch.nn.functional.max_pool1d(scores[None], 2 * reach + 1, 1, reach)[0]

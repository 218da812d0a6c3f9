"""ChunkKV: whole chunks of neighbouring tokens, the same for all heads of a layer.

Source: Liu et al., ChunkKV: Semantic-Preserving KV Cache Compression (arXiv 2502.00299). The last
tokens' attention, summed over heads, scores tokens; a chunk's score is the sum over its tokens,
and the best chunks stay whole beside the last tokens. Layers are taken in groups that share the
first one's choice, because neighbouring layers choose much the same. Chunks are 10 tokens and the
window 64; the paper leaves the window open. The last chunk taken is cut where the budget ends.
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
from kvstore.policies.budget import visible_rows
from kvstore.policies.budgeted import Budgeted, with_first_and_last
from kvstore.policies.parameters import tokens
from kvstore.policies.selection import (
    chosen_plan,
    chosen_rule,
    coverage_of_rows,
    full_plan,
)


@dataclasses.dataclass(frozen=True, slots=True)
class ChunkKV(Budgeted):
    """`chunk`: tokens a chunk. `window`: the tokens that vote, and stay.

    `reuse`: how many successive layers share a choice; 1 for none.
    """

    name: ClassVar[str] = "chunkkv"

    window: int = tokens(64, least=1)
    chunk: int = tokens(10, least=1)
    reuse: int = tokens(1, least=1)

    def profile_request(self, tokens: int, shape: LayerShape) -> ProfileRequest | None:
        return None if self.keeps_everything() else ProfileRequest(recent_rows=self.window)

    def plan(
        self, profile: AttentionProfile | None, prompt: PromptFacts, layer: LayerFacts
    ) -> LayerPlan:
        if profile is None:
            return full_plan(prompt, layer.shape)
        shape, first = layer.shape, layer.index - layer.index % self.reuse
        if first < layer.index and layer.cache.shapes[first] == shape:
            return _same_rows(layer.earlier[first], profile, prompt, shape)
        # one choice for the layer: every head stands for all
        votes = profile.accumulated().mean(1).sum(0, keepdim=True)
        scores = with_first_and_last(
            chunk_scores(votes, self.chunk, prompt.tokens - visible_rows(prompt, shape)),
            self.sinks,
            self.window,
            prompt,
            layer,
        )
        counts = [self.rows(prompt, layer)] * shape.kv_heads
        return chosen_plan(scores.expand(shape.kv_heads, -1), counts, prompt, shape, profile)


def chunk_scores(votes: torch.Tensor, chunk: int, first: int) -> torch.Tensor:
    """Each column's chunk's sum of `votes` `[H, T]`; chunks are counted from column `first`."""
    numbers = (torch.arange(votes.shape[1], device=votes.device) - first).clamp_(min=0) // chunk
    sums = votes.new_zeros(votes.shape[0], int(numbers[-1]) + 1).index_add_(1, numbers, votes)
    return sums[:, numbers]


def _same_rows(
    earlier: LayerPlan, profile: AttentionProfile, prompt: PromptFacts, shape: LayerShape
) -> LayerPlan:
    kept = torch.zeros(shape.kv_heads, prompt.tokens, dtype=torch.bool, device=profile.far.device)
    for head, plan in enumerate(earlier.heads):
        kept[head, plan.rows] = True
    shares = coverage_of_rows(profile, kept)
    parts = zip(earlier.heads, shares, strict=True)
    heads = (HeadPlan(chosen_rule(shape), plan.rows, None, share) for plan, share in parts)
    return LayerPlan(shape, tuple(heads))

"""AdaKV: SnapKV with a layer's budget shared among its heads by need.

Source: Feng et al., Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation
(arXiv 2407.11550). The scores of all heads of a layer compete: the layer's whole budget goes to
the highest of them, and a head's part is how many of those are its own. A safeguard mixes that
with equal parts, .2 of them as published, so that no head starves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch

from kvstore.plans import LayerFacts, PromptFacts
from kvstore.policies.budget import visible_rows
from kvstore.policies.parameters import share
from kvstore.policies.snapkv import SnapKV
from kvstore.rules import RATIO_ROUNDING


@dataclasses.dataclass(frozen=True, slots=True)
class AdaKV(SnapKV):
    """`safeguard`: the part of each head's budget that is the same for all."""

    name: ClassVar[str] = "adakv"

    safeguard: float = share(0.2)

    def counts(self, scores: torch.Tensor, prompt: PromptFacts, layer: LayerFacts) -> Sequence[int]:
        equal = self.rows(prompt, layer)
        visible = visible_rows(prompt, layer.shape)
        # retrieval heads have their rows from elsewhere
        sharing = [h for h in range(layer.shape.kv_heads) if h not in layer.uncompressed_heads]
        if not sharing:
            return [visible] * layer.shape.kv_heads
        won = adaptive_counts(scores[sharing, prompt.tokens - visible :], equal * len(sharing))
        counts = [visible] * layer.shape.kv_heads
        for head, count in zip(sharing, won, strict=True):
            mixed = self.safeguard * equal + (1 - self.safeguard) * count
            counts[head] = max(min(self.floor_rows, visible), int(mixed + RATIO_ROUNDING))
        return counts


def adaptive_counts(scores: torch.Tensor, total: int) -> list[int]:
    """Count, per row of `scores` `[H, T]`, its members of the `total` highest scores."""
    heads, width = scores.shape
    winners = scores.flatten().sort(descending=True, stable=True).indices[:total] // width
    found: list[int] = torch.bincount(winners, minlength=heads).tolist()
    return found

"""One budget for all heads of all layers, filled by the highest scores among them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch

from kvstore.kernels.device_copies import to_device
from kvstore.plans import LayerFacts, LayerPlan, PromptFacts
from kvstore.policies.base import Scope
from kvstore.policies.budget import visible_rows
from kvstore.policies.budgeted import Budgeted
from kvstore.policies.selection import chosen_plan


@dataclasses.dataclass(frozen=True, slots=True)
class Competing(Budgeted):
    """Scores must mean the same in every head; retrieval heads do not take part."""

    scope: ClassVar[Scope] = Scope.CACHE

    def plan_winners(
        self, scores: Sequence[torch.Tensor], prompt: PromptFacts, layers: Sequence[LayerFacts]
    ) -> list[LayerPlan]:
        """Each head keeps the rows it wins, and all that is fed; `scores` f32 `[H, T]` a layer."""
        counts = self._winners(scores, prompt, layers)
        return [
            chosen_plan(scores[layer.index], counts[layer.index], prompt, layer.shape, None)
            for layer in layers
        ]

    def _winners(
        self, scores: Sequence[torch.Tensor], prompt: PromptFacts, layers: Sequence[LayerFacts]
    ) -> list[list[int]]:
        visible = [visible_rows(prompt, layer.shape) for layer in layers]
        competing = [
            (layer.index, head)
            for layer in layers
            for head in range(layer.shape.kv_heads)
            if head not in layer.uncompressed_heads
        ]
        counts = [[visible[layer.index]] * layer.shape.kv_heads for layer in layers]
        rows = [self.rows(prompt, layer) for layer in layers]
        total = sum(rows[index] for index, _ in competing)
        parts = [scores[i][h, prompt.tokens - visible[i] :] for i, h in competing]
        for (index, head), count in zip(competing, _winners(parts, total), strict=True):
            counts[index][head] = count
        return counts


def _winners(parts: Sequence[torch.Tensor], total: int) -> list[int]:
    """Count the `total` highest of all scores per part; the first of equal scores wins."""
    if not parts:
        return []
    owners = torch.repeat_interleave(
        torch.arange(len(parts)), torch.tensor([len(part) for part in parts])
    )
    owners = to_device(owners, parts[0].device)
    order = torch.cat(list(parts)).sort(descending=True, stable=True).indices[:total]
    found: list[int] = torch.bincount(owners[order], minlength=len(parts)).tolist()
    return found

"""Reconstruction: what the model looks at when it repeats the prompt, over all heads at once.

Source: Kim et al., KVzip: Query-Agnostic KV Cache Compression with Context Reconstruction
(arXiv 2505.23416). In a second pass the model reads its own prompt again as the answer to a
request to repeat it; a row scores the most attention that any token of that answer, in any query
head of its group, pays to it. The highest scores of all layers and heads together fill the
budget. It costs more than the prefill itself, and is meant for contexts that are stored and asked
about many times. The paper masks what it drops; here it is gone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch

from kvstore.cache import LayerShape
from kvstore.plans import (
    AttentionProfile,
    CacheFacts,
    LayerFacts,
    LayerPlan,
    ProfileRequest,
    PromptFacts,
)
from kvstore.policies.base import Scope
from kvstore.policies.budget import visible_rows
from kvstore.policies.budgeted import Budgeted, with_first_and_last
from kvstore.policies.selection import chosen_plan, full_plan


@dataclasses.dataclass(frozen=True, slots=True)
class Reconstruction(Budgeted):
    """Sinks and the latest rows up to the floor are kept in every head."""

    name: ClassVar[str] = "reconstruction"
    scope: ClassVar[Scope] = Scope.CACHE

    def profile_request(self, tokens: int, shape: LayerShape) -> ProfileRequest | None:
        return None if self.keeps_everything() else ProfileRequest(edges=(), reconstruct=True)

    def plan_cache(
        self,
        profiles: Sequence[AttentionProfile | None],
        prompt: PromptFacts,
        cache: CacheFacts,
    ) -> Sequence[LayerPlan]:
        layers = [LayerFacts(index, cache) for index in range(len(cache.shapes))]
        peaks = [None if profile is None else profile.peaks for profile in profiles]
        scores = [
            self._scores(of_layer, prompt, layer)
            for of_layer, layer in zip(peaks, layers, strict=True)
            if of_layer is not None
        ]
        if len(scores) < len(layers):
            return [full_plan(prompt, layer.shape) for layer in layers]
        counts = self._counts(scores, prompt, layers)
        return [
            chosen_plan(scores[layer.index], counts[layer.index], prompt, layer.shape, None)
            for layer in layers
        ]

    def _scores(self, peaks: torch.Tensor, prompt: PromptFacts, layer: LayerFacts) -> torch.Tensor:
        recent = max(0, self.floor_rows - self.sinks)
        return with_first_and_last(peaks.amax(1), self.sinks, recent, prompt, layer)

    def _counts(
        self, scores: Sequence[torch.Tensor], prompt: PromptFacts, layers: Sequence[LayerFacts]
    ) -> list[list[int]]:
        """Rows of each head among the highest scores of all heads that are not kept whole."""
        visible = [visible_rows(prompt, layer.shape) for layer in layers]
        competing = [
            (layer.index, head)
            for layer in layers
            for head in range(layer.shape.kv_heads)
            if head not in layer.whole
        ]
        counts = [[visible[layer.index]] * layer.shape.kv_heads for layer in layers]
        rows = [self.rows(prompt, layer) for layer in layers]
        total = sum(rows[index] for index, _ in competing)
        parts = [scores[i][h, prompt.tokens - visible[i] :] for i, h in competing]
        for (index, head), count in zip(competing, _winners(parts, total), strict=True):
            counts[index][head] = count
        return counts


def _winners(parts: Sequence[torch.Tensor], total: int) -> list[int]:
    """How many of the `total` highest of all scores lie in each part; of equal ones the first."""
    if not parts:
        return []
    owners = torch.repeat_interleave(
        torch.arange(len(parts)), torch.tensor([len(part) for part in parts])
    )
    order = torch.cat(list(parts)).sort(descending=True, stable=True).indices[:total].cpu()
    found: list[int] = torch.bincount(owners[order], minlength=len(parts)).tolist()
    return found

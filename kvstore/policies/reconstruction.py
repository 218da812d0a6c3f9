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
from kvstore.policies.budgeted import with_first_and_last
from kvstore.policies.competing import Competing
from kvstore.policies.selection import full_plan


@dataclasses.dataclass(frozen=True, slots=True)
class Reconstruction(Competing):
    """Sinks and the latest rows up to the floor are kept in every head."""

    name: ClassVar[str] = "reconstruction"

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
        return self.plan_winners(scores, prompt, layers)

    def _scores(self, peaks: torch.Tensor, prompt: PromptFacts, layer: LayerFacts) -> torch.Tensor:
        recent = max(0, self.floor_rows - self.sinks)
        return with_first_and_last(peaks.amax(1), self.sinks, recent, prompt, layer)

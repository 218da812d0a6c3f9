"""VL-Cache: layers whose attention is spread out get more of the budget.

Source: Tu et al., VL-Cache: Sparsity and Modality-Aware KV Cache Compression for Vision-Language
Model Inference Acceleration (arXiv 2410.23317). A layer's density is how many of the columns a
query really looks at, those with at least .01 of its row's highest probability, mean over heads
and rows; budgets are in proportion to it, none of a layer above its prompt. Rows score the
attention of the same queries. The paper's queries are the text after an image; of text alone they
are the last 50 tokens, as in its own measurements of speed. A tenth of a layer's budget is for the
latest rows. Its least budget of a hundredth of the prompt is here the floor of rows.
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
from kvstore.policies.budgeted import Budgeted, with_first_and_last
from kvstore.policies.layer_budgets import spread_rows
from kvstore.policies.parameters import ratio, tokens
from kvstore.policies.selection import chosen_plan, full_plan
from kvstore.rules import share_of


@dataclasses.dataclass(frozen=True, slots=True)
class VLCache(Budgeted):
    """`window`: the last tokens, which vote. `threshold`: what counts as looked at.

    `recent_ratio` of a layer's budget is for its latest rows.
    """

    name: ClassVar[str] = "vlcache"
    scope: ClassVar[Scope] = Scope.CACHE

    window: int = tokens(50, least=1)
    threshold: float = ratio(0.01)
    recent_ratio: float = ratio(0.1)

    def profile_request(self, tokens: int, shape: LayerShape) -> ProfileRequest | None:
        if self.keeps_everything():
            return None
        return ProfileRequest(recent_rows=self.window, density_threshold=self.threshold)

    def plan_cache(
        self,
        profiles: Sequence[AttentionProfile | None],
        prompt: PromptFacts,
        cache: CacheFacts,
    ) -> Sequence[LayerPlan]:
        measured = [profile for profile in profiles if profile is not None]
        if len(measured) < len(cache.shapes):
            return [full_plan(prompt, shape) for shape in cache.shapes]
        rows = spread_rows(self, _densities(measured), prompt, cache)
        return [
            self._plan_layer(profile, rows[index], prompt, LayerFacts(index, cache))
            for index, profile in enumerate(measured)
        ]

    def _plan_layer(
        self, profile: AttentionProfile, rows: int, prompt: PromptFacts, layer: LayerFacts
    ) -> LayerPlan:
        recent = max(share_of(self.recent_ratio, rows), self.floor_rows - self.sinks, 1)
        scores = with_first_and_last(
            profile.accumulated().mean(1), self.sinks, recent, prompt, layer
        )
        counts = [rows] * layer.shape.kv_heads
        return chosen_plan(scores, counts, prompt, layer.shape, profile)


def _densities(profiles: Sequence[AttentionProfile]) -> list[float]:
    """Return the layers' densities; they are waited for together."""
    numbers: list[float] = torch.stack([torch.as_tensor(p.density) for p in profiles]).tolist()
    return numbers

"""Cascading KV: the further back, the fewer tokens, each the best of its neighbours.

Source: Willette et al., Training-Free Exponential Context Extension via Cascading KV Cache
(arXiv 2406.17808). Sub-caches of equal size follow one another: what leaves one is taken up by the
next, which admits every second token, the third every fourth, and a token off the beat replaces
the one before it if it has received more attention. So of each 2^i neighbours in sub-cache i one
is left, and that is what is chosen here, once, at the prompt's end; what the cascade leaves of the
budget goes to the rows of most attention. The paper's scores fade exponentially over queries:
here they are sums over the last `window`. It counts positions inside the cache; here they are
original, and generated tokens all stay.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from kvstore.cache import LayerShape
from kvstore.plans import AttentionProfile, LayerFacts, LayerPlan, ProfileRequest, PromptFacts
from kvstore.policies.budget import visible_rows
from kvstore.policies.budgeted import Budgeted, with_first_and_last
from kvstore.policies.parameters import tokens
from kvstore.policies.selection import chosen_plan, full_plan


@dataclasses.dataclass(frozen=True, slots=True)
class Cascading(Budgeted):
    """`cascades` sub-caches; `window`: the last tokens, whose attention scores."""

    name: ClassVar[str] = "cascading"

    cascades: int = tokens(4, least=1)
    window: int = tokens(256, least=1)

    def profile_request(self, tokens: int, shape: LayerShape) -> ProfileRequest | None:
        return None if self.keeps_everything() else ProfileRequest(recent_rows=self.window)

    def plan(
        self, profile: AttentionProfile | None, prompt: PromptFacts, layer: LayerFacts
    ) -> LayerPlan:
        if profile is None:
            return full_plan(prompt, layer.shape)
        attention, rows = profile.accumulated().mean(1), self.rows(prompt, layer)
        size = max(1, max(rows - self.sinks, self.floor_rows - self.sinks) // self.cascades)
        first = prompt.tokens - visible_rows(prompt, layer.shape)
        chosen = cascade(attention[:, first:], size, self.cascades)
        # no column receives more than a row of mass 1 from each query
        lifted = attention.clone()
        lifted[:, first:] += chosen * (profile.mass_rows + 1.0)
        scores = with_first_and_last(lifted, self.sinks, 0, prompt, layer)
        return chosen_plan(scores, [rows] * layer.shape.kv_heads, prompt, layer.shape, profile)


def cascade(attention: torch.Tensor, size: int, cascades: int) -> torch.Tensor:
    """The columns that `cascades` sub-caches of `size` rows hold, bool `[H, T]`."""
    chosen = torch.zeros_like(attention, dtype=torch.bool)
    end = attention.shape[1]
    for step in (1 << number for number in range(cascades)):
        for _ in range(size):
            if end <= 0:
                return chosen
            first = max(0, end - step)
            best = attention[:, first:end].argmax(1, keepdim=True) + first
            chosen.scatter_(1, best, True)
            end = first
    return chosen

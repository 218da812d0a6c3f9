"""What a policy asks of a profile, what it receives, and what it decides."""

from __future__ import annotations

import dataclasses

import torch

from kvstore.cache import LayerShape
from kvstore.rules import RetentionRule


@dataclasses.dataclass(frozen=True, slots=True)
class ProfileRequest:
    """What a policy wants measured.

    `edges`: ascending distances in tokens, the first 0, at which far mass is wanted.
    `rows`: how many uniformly strided query rows to look at; 0 means all of them.
    `value_weighted`: weigh each probability by the norm of its value, renormalised per row.
    """

    edges: tuple[int, ...] = (0,)
    rows: int = 0
    value_weighted: bool = False


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class AttentionProfile:
    """The attention mass that each column received, by distance, for one layer.

    `far` f32 `[H, G, E, T]`: `far[..., e, j] = Σ A_ij over query rows i with i − j >= edges[e]`,
    scaled to all `tokens` rows where only a sample was looked at. `edges[0]` is 0, so
    `far[..., 0, :]` is the accumulated attention. No n × n map is ever held.
    """

    far: torch.Tensor
    edges: tuple[int, ...]
    tokens: int

    def beyond(self, distance: int) -> torch.Tensor:
        """Mass each column received from at least `distance` tokens away, `[H, G, T]`."""
        return self.far[:, :, self.edges.index(distance)]

    def accumulated(self) -> torch.Tensor:
        """All the mass each column received, `[H, G, T]`."""
        return self.far[:, :, 0]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class PromptFacts:
    """What a policy may know of the prompt: its length and each token's class, uint8 `[T]`."""

    tokens: int
    classes: torch.Tensor


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class HeadPlan:
    """What one KV head keeps of the prompt: ascending row numbers int64 `[R]`, and its rule.

    `scores` f32 `[T]` are the scores of *all* prompt tokens (None where the rule needs none);
    `recovered` is the share of the head's attention mass that the kept rows cover.
    """

    rule: RetentionRule
    rows: torch.Tensor
    scores: torch.Tensor | None
    recovered: float


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class LayerPlan:
    """The plans of a layer's H KV heads."""

    shape: LayerShape
    heads: tuple[HeadPlan, ...]

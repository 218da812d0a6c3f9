"""Keeps everything: the dense cache, and token-identical greedy output."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from kvstore.cache import LayerShape
from kvstore.plans import AttentionProfile, LayerFacts, LayerPlan, ProfileRequest, PromptFacts
from kvstore.policies.base import Scope
from kvstore.policies.parameters import to_parameters
from kvstore.policies.selection import full_plan


@dataclasses.dataclass(frozen=True, slots=True)
class Full:
    """No parameters, no profile."""

    name: ClassVar[str] = "full"
    scope: ClassVar[Scope] = Scope.LAYER
    uses_filters: ClassVar[bool] = False
    uses_sensitivity: ClassVar[bool] = False
    weighs_rows: ClassVar[bool] = False

    @property
    def retrieval_ratio(self) -> float:
        """No head needs to be told apart."""
        return 0.0

    def profile_request(self, tokens: int, shape: LayerShape) -> ProfileRequest | None:
        return None

    def plan(
        self, profile: AttentionProfile | None, prompt: PromptFacts, layer: LayerFacts
    ) -> LayerPlan:
        return full_plan(prompt, layer.shape)

    def parameters(self) -> dict[str, object]:
        return to_parameters(self)

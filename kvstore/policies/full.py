"""Keeps everything: the dense cache, and token-identical greedy output."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from kvstore.cache import LayerShape
from kvstore.plans import AttentionProfile, LayerPlan, ProfileRequest, PromptFacts
from kvstore.policies.parameters import to_parameters
from kvstore.policies.selection import full_plan


@dataclasses.dataclass(frozen=True, slots=True)
class Full:
    """No parameters, no profile."""

    name: ClassVar[str] = "full"

    def profile_request(self, tokens: int, shape: LayerShape) -> ProfileRequest | None:
        return None

    def plan(
        self, profile: AttentionProfile | None, prompt: PromptFacts, shape: LayerShape
    ) -> LayerPlan:
        return full_plan(prompt, shape)

    def parameters(self) -> dict[str, object]:
        return to_parameters(self)

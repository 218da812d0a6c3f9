"""What a policy is: it asks for a profile and answers with a plan."""

from __future__ import annotations

from typing import ClassVar, Protocol

from kvstore.cache import LayerShape
from kvstore.plans import AttentionProfile, LayerPlan, ProfileRequest, PromptFacts


class Policy(Protocol):
    """Decides, layer by layer, each KV head's rule and scores; the kept rows follow from these."""

    name: ClassVar[str]

    def profile_request(self, tokens: int, shape: LayerShape) -> ProfileRequest | None:
        """What to measure in a layer of this shape for a prompt of `tokens`; None for nothing."""

    def plan(
        self, profile: AttentionProfile | None, prompt: PromptFacts, shape: LayerShape
    ) -> LayerPlan:
        """Decide for one layer; `profile` is what `profile_request` asked for."""

    def parameters(self) -> dict[str, object]:
        """Every parameter, defaults included, as JSON values: part of the cache's fingerprint."""

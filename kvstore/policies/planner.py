"""Drives a policy: takes the layers' profiles as they come, hands out plans as soon as they can."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from kvstore.cache import LayerShape
from kvstore.calibration import Calibration
from kvstore.plans import (
    AttentionProfile,
    CacheFacts,
    LayerFacts,
    LayerPlan,
    ProfileRequest,
    PromptFacts,
)
from kvstore.policies.base import CachePolicy, Policy
from kvstore.policies.selection import full_rule, head_plan


class CachePlanner:
    """Plans the layers of one prompt. Retrieval heads keep all rows, whatever the policy decides.

    Source of retrieval heads: RazorAttention (arXiv 2407.15891). `calibration` must hold what the
    policy needs. `row_bytes`: bytes of a key and a value together.
    """

    def __init__(
        self,
        policy: Policy,
        prompt: PromptFacts,
        shapes: tuple[LayerShape, ...],
        row_bytes: Callable[[LayerShape], int],
        calibration: Calibration,
    ) -> None:
        self._policy = policy
        self._prompt = prompt
        self._cache = CacheFacts(
            shapes,
            row_bytes,
            calibration.retrieval_heads(policy.retrieval_ratio),
            calibration.filters,
            calibration.sensitivity,
        )
        self._profiles: list[AttentionProfile | None] = []
        self._plans: list[LayerPlan] = []

    def request(self, index: int) -> ProfileRequest | None:
        """Return the measurements that the policy asks for in this layer."""
        return self._policy.profile_request(self._prompt.tokens, self._cache.shapes[index])

    def add(self, profile: AttentionProfile | None) -> Sequence[tuple[int, LayerPlan]]:
        """Take the next layer's profile; returns (layer, plan) of all that are now decided."""
        if not isinstance(self._policy, CachePolicy):
            layer = LayerFacts(len(self._plans), self._cache, tuple(self._plans))
            self._plans.append(self._policy.plan(profile, self._prompt, layer))
            return [self._decided(layer.index)]
        self._profiles.append(profile)
        if len(self._profiles) < len(self._cache.shapes):
            return []
        self._plans = list(self._policy.plan_cache(self._profiles, self._prompt, self._cache))
        return [self._decided(index) for index in range(len(self._plans))]

    def _decided(self, index: int) -> tuple[int, LayerPlan]:
        whole = LayerFacts(index, self._cache).uncompressed_heads
        plan, shape = self._plans[index], self._cache.shapes[index]
        if not whole:
            return index, plan
        everything = head_plan(full_rule(shape), None, self._prompt, 1.0)
        heads = (everything if number in whole else h for number, h in enumerate(plan.heads))
        return index, dataclasses.replace(plan, heads=tuple(heads))

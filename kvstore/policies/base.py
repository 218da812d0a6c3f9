"""The policy interface: a policy requests a profile and returns a plan."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import ClassVar, Protocol, TypeAlias, runtime_checkable

from kvstore.cache import LayerShape
from kvstore.plans import (
    AttentionProfile,
    CacheFacts,
    LayerFacts,
    LayerPlan,
    ProfileRequest,
    PromptFacts,
)


class Scope(enum.Enum):
    """The part of a cache that a policy plans in one call.

    A layer is sent as soon as it is planned. A policy that plans all layers together delays all of
    them until the last is computed; their dense keys and values are held until then.
    """

    LAYER = "layer"
    CACHE = "cache"


class _AnyPolicy(Protocol):
    """Members of policies of both scopes."""

    name: ClassVar[str]
    scope: ClassVar[Scope]
    # whether it wants the queries' directions, `CacheFacts.filters`
    uses_filters: ClassVar[bool]
    # whether rows may get log-weights, which not every format of a cache has
    weighs_rows: ClassVar[bool]

    @property
    def uses_sensitivity(self) -> bool:
        """Whether it wants to know what errors of each head do, `CacheFacts.sensitivity`."""

    @property
    def retrieval_ratio(self) -> float:
        """The share of KV heads, best at retrieving, that keep everything; 0 to 1."""

    def profile_request(self, tokens: int, shape: LayerShape) -> ProfileRequest | None:
        """Return the measurements for a layer and a prompt of `tokens`; None for none."""

    def parameters(self) -> dict[str, object]:
        """Every parameter, defaults included, as JSON values: part of the cache's fingerprint."""


class LayerPolicy(_AnyPolicy, Protocol):
    """Decides, layer by layer, each KV head's rule and scores, and with them the kept rows."""

    def plan(
        self, profile: AttentionProfile | None, prompt: PromptFacts, layer: LayerFacts
    ) -> LayerPlan:
        """Decide for one layer; `profile` is what `profile_request` asked for."""


@runtime_checkable
class CachePolicy(_AnyPolicy, Protocol):
    """Decides about all layers at once."""

    def plan_cache(
        self,
        profiles: Sequence[AttentionProfile | None],
        prompt: PromptFacts,
        cache: CacheFacts,
    ) -> Sequence[LayerPlan]:
        """Decide for every layer; `profiles` are what `profile_request` asked for, in order."""


Policy: TypeAlias = LayerPolicy | CachePolicy

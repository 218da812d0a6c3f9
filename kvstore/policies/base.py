"""What a policy is: it asks for a profile and answers with a plan."""

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
    """What a policy decides about at once.

    A layer leaves as soon as it is planned, so of a policy that needs them all none leaves before
    the last has been computed, and the dense keys and values of all are held until then.
    """

    LAYER = "layer"
    CACHE = "cache"


class _AnyPolicy(Protocol):
    """What the policies of either scope have."""

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
        """What to measure in a layer of this shape for a prompt of `tokens`; None for nothing."""

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

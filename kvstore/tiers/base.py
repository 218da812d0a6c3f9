"""What every tier does, and how each call can end.

Calls are plain and blocking, and every tier may be called from many threads at once: copying,
checksums, files and the clients of the shared stores all want a thread anyway, so a service calls
a tier through `asyncio.to_thread`. A `Tier` answers within the call's time-out whatever happens
beneath it; a `BlockingTier` only tries to, and `BoundedTier` makes a `Tier` of it.

No call raises on account of the store below: what went wrong is part of the answer.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Protocol, TypeAlias

from kvstore.cache import CompactCache, Fingerprint, ModelFingerprint
from kvstore.tiers.content_key import ContentKey
from kvstore.tiers.deadline import Deadline

# whose cache the caller can use: by content key all of it is known, by handle only the model
Expected: TypeAlias = Fingerprint | ModelFingerprint


class MissReason(enum.StrEnum):
    """Why there is no cache, the most telling first."""

    OTHER_MODEL = "other_model"
    OTHER_POLICY = "other_policy"
    OTHER_FORMAT = "other_format"
    CORRUPT = "corrupt"
    EXPIRED = "expired"
    EVICTED = "evicted"
    TIMEOUT = "timeout"
    UNAVAILABLE = "unavailable"
    ABSENT = "absent"


class PutStatus(enum.StrEnum):
    """How a put ended. `FULL`: no room, `OVER_QUOTA`: none in its namespace."""

    STORED = "stored"
    FULL = "full"
    OVER_QUOTA = "over_quota"
    TIMEOUT = "timeout"
    UNAVAILABLE = "unavailable"


@dataclasses.dataclass(frozen=True, slots=True)
class Hit:
    """A cache, checked, and until when it may be used (Unix seconds; None: for ever)."""

    cache: CompactCache
    expires_at: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Miss:
    """No cache; `detail` is for logs and holds nothing of the prompt."""

    reason: MissReason
    detail: str = ""


Lookup: TypeAlias = Hit | Miss


@dataclasses.dataclass(frozen=True, slots=True)
class PutResult:
    """What became of a put; `detail` is for logs."""

    status: PutStatus
    detail: str = ""

    @property
    def stored(self) -> bool:
        return self.status is PutStatus.STORED


STORED = PutResult(PutStatus.STORED)


class Tier(Protocol):
    """A place where caches rest. Every call returns within its time-out."""

    @property
    def name(self) -> str:
        """What counters and logs call it."""
        ...

    def put(
        self,
        key: ContentKey,
        cache: CompactCache,
        lifetime_seconds: float | None,
        timeout_seconds: float,
    ) -> PutResult:
        """Keep a cache, whose tensors nobody may change from now on, in place of any before it.

        Unless it is stored, the one before it may stay: under one content key both are as good.
        `lifetime_seconds` None means until it is evicted, or for as long as the tier allows.
        A tier that writes bytes raises `InvalidParameter` for a cache that no reader would take.
        """
        ...

    def get(self, key: ContentKey, expected: Expected, timeout_seconds: float) -> Lookup:
        """The cache, equal to the bit to the one put, or why not; its tensors are only to read."""
        ...

    def delete(self, key: ContentKey, timeout_seconds: float) -> bool:
        """True if the tier is known to hold nothing under `key` any more."""
        ...

    def contains(self, key: ContentKey, timeout_seconds: float) -> bool:
        """True if a get would probably hit; looks at no contents and counts as no access."""
        ...

    def bytes_in_use(self, namespace: str | None, timeout_seconds: float) -> int | None:
        """Bytes that caches occupy, of one namespace or of all; None if that cannot be told."""
        ...


class BlockingTier(Protocol):
    """A `Tier` that looks at the deadline where it can, but may overrun it."""

    @property
    def name(self) -> str: ...

    def put(
        self,
        key: ContentKey,
        cache: CompactCache,
        lifetime_seconds: float | None,
        deadline: Deadline,
    ) -> PutResult: ...

    def get(self, key: ContentKey, expected: Expected, deadline: Deadline) -> Lookup: ...

    def delete(self, key: ContentKey, deadline: Deadline) -> bool: ...

    def contains(self, key: ContentKey, deadline: Deadline) -> bool: ...

    def bytes_in_use(self, namespace: str | None, deadline: Deadline) -> int | None: ...

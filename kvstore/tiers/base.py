"""The protocol of a tier, and how each call can end.

Every call blocks and takes the deadline by which its answer is due, which the first caller makes.
A tier may be called from many threads at once. A tier over files or servers checks the deadline
between its steps and may overrun it; `BoundedTier` wraps such a tier and always answers in time.

No call raises because of a fault of the store below: the answer says what went wrong.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Protocol, TypeAlias

from kvstore.cache import CompactCache, Fingerprint, ModelFingerprint
from kvstore.tiers.content_key import ContentKey
from kvstore.tiers.deadline import Deadline

# the identity of the cache that the caller can use: a content key determines all of it, a handle
# only the model
Expected: TypeAlias = Fingerprint | ModelFingerprint


class MissReason(enum.StrEnum):
    """The reason why there is no cache, the most specific first."""

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
    """The outcome of a put. `FULL`: no room; `OVER_QUOTA`: no room within the namespace's quota."""

    STORED = "stored"
    FULL = "full"
    OVER_QUOTA = "over_quota"
    TIMEOUT = "timeout"
    UNAVAILABLE = "unavailable"


@dataclasses.dataclass(frozen=True, slots=True)
class Hit:
    """A checked cache, and the Unix second until which it may be used (None: without end)."""

    cache: CompactCache
    expires_at: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Miss:
    """An answer without a cache; `detail` is for logs and contains nothing of the prompt."""

    reason: MissReason
    detail: str = ""


Lookup: TypeAlias = Hit | Miss


@dataclasses.dataclass(frozen=True, slots=True)
class PutResult:
    """The outcome of a put; `detail` is for logs."""

    status: PutStatus
    detail: str = ""

    @property
    def stored(self) -> bool:
        """Whether the tier has the cache."""
        return self.status is PutStatus.STORED


STORED = PutResult(PutStatus.STORED)


class Tier(Protocol):
    """A place for stored caches."""

    @property
    def name(self) -> str:
        """The tier's name in counters and logs."""
        ...

    def put(
        self,
        key: ContentKey,
        cache: CompactCache,
        lifetime_seconds: float | None,
        deadline: Deadline,
    ) -> PutResult:
        """Store a cache in place of any earlier one under the key.

        The cache's tensors must not change afterwards. If the put fails, the earlier cache may
        stay: caches of one content key are interchangeable. With `lifetime_seconds` None the cache
        stays until it is evicted, or for as long as the tier allows. A tier that writes bytes
        raises `InvalidParameter` for a cache that readers would refuse.
        """
        ...

    def get(self, key: ContentKey, expected: Expected, deadline: Deadline) -> Lookup:
        """Return the cache bit for bit as it was put, or a miss. Its tensors are read-only."""
        ...

    def delete(self, key: ContentKey, deadline: Deadline) -> bool:
        """Remove the cache; return True if the tier certainly holds none under `key` afterwards."""
        ...

    def contains(self, key: ContentKey, deadline: Deadline) -> bool:
        """Whether a get would probably hit. Reads no contents and does not count as an access."""
        ...

    def bytes_in_use(self, namespace: str | None, deadline: Deadline) -> int | None:
        """Return the bytes that caches of one namespace, or of all, occupy; None if unknown."""
        ...

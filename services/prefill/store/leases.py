"""Who may count on a kept cache, and for how long."""

from __future__ import annotations

import dataclasses
import re
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Callable

from headwise.errors import InvalidRequest, NotFound, Overloaded
from kvstore.cache import CompactCache, Fingerprint
from kvstore.tiers.content_key import ContentKey
from services.runtime.process import metrics
from services.runtime.serving.status import RETRY_AFTER_SECONDS

# reasons of leases that are over, the last so many
_REMEMBERED = 65_536
_HANDLE = re.compile(r"([0-9a-f]{64})(\.[0-9a-f]{32})?")


@dataclasses.dataclass(frozen=True, slots=True)
class Lease:
    """A right to one cache until `expires`, in seconds of the clock."""

    handle: str
    key: ContentKey
    fingerprint: Fingerprint
    tokens: int
    cache_bytes: int
    keep_seconds: float
    expires: float


class Leases:
    """All leases. Used on the event loop alone.

    `on_last` is told a key once its last lease is over, however that came.
    """

    def __init__(
        self,
        on_last: Callable[[ContentKey], None],
        *,
        most: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_last = on_last
        self._most = most
        self._clock = clock
        self._leases: dict[str, Lease] = {}
        self._of_key: Counter[ContentKey] = Counter()
        self._gone: OrderedDict[tuple[str, str], str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._leases)

    def require_place(self) -> None:
        """Raise `Overloaded` if there can be no further lease."""
        if len(self._leases) >= self._most:
            raise Overloaded(
                f"{self._most} leases are running",
                "TOO_MANY_LEASES",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )

    def grant(self, key: ContentKey, cache: CompactCache, seconds: float) -> Lease:
        """A new lease. Raises `Overloaded` where there are as many as there may be."""
        self.require_place()
        lease = Lease(
            handle=f"{key.digest}.{secrets.token_hex(16)}",
            key=key,
            fingerprint=cache.fingerprint,
            tokens=cache.next_position,
            cache_bytes=cache.nbytes,
            keep_seconds=seconds,
            expires=self._clock() + seconds,
        )
        self._leases[lease.handle] = lease
        self._of_key[key] += 1
        return lease

    def held(self, key: ContentKey) -> bool:
        """Somebody counts on it."""
        return key in self._of_key

    def find(self, handle: str, namespace: str) -> Lease | None:
        """The lease; None where it was never given here, as for every other tenant's.

        Raises `NotFound` with the reason for one that is over.
        """
        lease = self._leases.get(handle)
        if lease is not None and lease.expires <= self._clock():
            self._end(lease, "LEASE_EXPIRED")
            lease = None
        if lease is not None and lease.key.namespace == namespace:
            return lease
        reason = self._gone.get((namespace, handle))
        if reason is not None:
            how = reason.removeprefix("LEASE_").lower()
            raise NotFound(f"the lease of this cache is {how}", reason, {"field": "handle"})
        return None

    def renew(self, handle: str, namespace: str, seconds: float) -> Lease:
        """From now on, for so long; 0 for as long as at first. Raises `NotFound`."""
        lease = self._require(handle, namespace)
        seconds = seconds or lease.keep_seconds
        lease = dataclasses.replace(lease, expires=self._clock() + seconds)
        self._leases[handle] = lease
        return lease

    def release(self, handle: str, namespace: str) -> None:
        """Raises `NotFound`."""
        self._end(self._require(handle, namespace), "LEASE_RELEASED")

    def refuse(self, lease: Lease) -> None:
        """End one whose cache could not be stored; harmless if it is over already."""
        if lease.handle in self._leases:
            self._end(lease, "LEASE_REFUSED")

    def expire(self) -> None:
        """End all whose time is over."""
        now = self._clock()
        for lease in [lease for lease in self._leases.values() if lease.expires <= now]:
            self._end(lease, "LEASE_EXPIRED")

    def expires_in_seconds(self, lease: Lease) -> float:
        return max(0.0, lease.expires - self._clock())

    def _require(self, handle: str, namespace: str) -> Lease:
        lease = self.find(handle, namespace)
        if lease is None:
            raise NotFound("no lease of this handle", "LEASE_UNKNOWN", {"field": "handle"})
        return lease

    def _end(self, lease: Lease, reason: str) -> None:
        del self._leases[lease.handle]
        metrics.LEASES_ENDED.labels(reason).inc()
        self._gone[lease.key.namespace, lease.handle] = reason
        while len(self._gone) > _REMEMBERED:
            self._gone.popitem(last=False)
        self._of_key[lease.key] -= 1
        if not self._of_key[lease.key]:
            del self._of_key[lease.key]
            self._on_last(lease.key)


def key_of(handle: str, namespace: str) -> ContentKey:
    """The content key in a handle, or the one that it is. Raises `InvalidRequest`."""
    match = _HANDLE.fullmatch(handle)
    if match is None:
        raise InvalidRequest("this is no handle", "MALFORMED_HANDLE", {"field": "handle"})
    return ContentKey(namespace, match[1])

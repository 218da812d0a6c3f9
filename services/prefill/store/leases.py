"""Leases on stored caches."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable

from headwise.errors import NotFound, Overloaded
from kvstore.cache import CompactCache, Fingerprint
from kvstore.shares import Shares
from kvstore.tiers.content_key import ContentKey
from services.runtime.process import metrics
from services.runtime.serving.handles import Handle
from services.runtime.serving.status import RETRY_AFTER_SECONDS

# the number of ended leases whose reasons are remembered
_REMEMBERED = 65_536


@dataclasses.dataclass(frozen=True, slots=True)
class Lease:
    """A promise to keep one cache until `expires`, in seconds of the clock."""

    handle: str
    key: ContentKey
    fingerprint: Fingerprint
    tokens: int
    cache_bytes: int
    keep_seconds: float
    expires: float


class Leases:
    """All leases, for use on the event loop alone.

    `on_last` is called with a key when the last lease of its cache has ended for any reason.
    """

    def __init__(
        self,
        on_last: Callable[[ContentKey], None],
        *,
        max_leases: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_last = on_last
        self._shares = Shares(max_leases)
        self._clock = clock
        self._leases: dict[str, Lease] = {}
        # the handles of each tenant, the oldest first
        self._of_tenant: defaultdict[str, OrderedDict[str, None]] = defaultdict(OrderedDict)
        self._bytes: Counter[str] = Counter()
        self._of_key: Counter[ContentKey] = Counter()
        self._gone: OrderedDict[tuple[str, str], str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._leases)

    def held_by(self, namespace: str) -> int:
        """Return the number of a tenant's leases."""
        return self._shares.held(namespace)

    def bytes_of(self, namespace: str) -> int:
        """Return the bytes of the caches that a tenant has leases on, each cache once."""
        return self._bytes[namespace]

    def require_place(self, namespace: str) -> None:
        """Raise `Overloaded` if the tenant can have no further lease."""
        if self._shares.who_yields(namespace) == namespace:
            raise Overloaded(
                f"{self._shares.total} leases are running, and this tenant has most of them",
                "TOO_MANY_LEASES",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )

    def grant(self, key: ContentKey, cache: CompactCache, seconds: float) -> Lease:
        """Return a new lease; the oldest of the tenant that has most may end for it.

        Raises `Overloaded` where that is the tenant itself.
        """
        self.require_place(key.namespace)
        yielding = self._shares.who_yields(key.namespace)
        if yielding is not None:
            metrics.SHARES_YIELDED.labels("leases").inc()
            self._end(self._leases[next(iter(self._of_tenant[yielding]))], "LEASE_EVICTED")
        lease = Lease(
            handle=str(Handle.of_new_lease(key.digest)),
            key=key,
            fingerprint=cache.fingerprint,
            tokens=cache.next_position,
            cache_bytes=cache.nbytes,
            keep_seconds=seconds,
            expires=self._clock() + seconds,
        )
        self._leases[lease.handle] = lease
        self._of_tenant[key.namespace][lease.handle] = None
        self._shares.take(key.namespace)
        if not self._of_key[key]:
            self._bytes[key.namespace] += lease.cache_bytes
        self._of_key[key] += 1
        return lease

    def held(self, key: ContentKey) -> bool:
        """Whether a lease on the cache is running."""
        return key in self._of_key

    def find(self, handle: str, namespace: str) -> Lease | None:
        """Return the lease; None if this store never granted it to the namespace.

        Raises `NotFound` with the reason for a lease that has ended.
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
        """Let a lease run for `seconds` more, 0 for its first duration. Raises `NotFound`."""
        lease = self._require(handle, namespace)
        seconds = seconds or lease.keep_seconds
        lease = dataclasses.replace(lease, expires=self._clock() + seconds)
        self._leases[handle] = lease
        return lease

    def release(self, handle: str, namespace: str) -> None:
        """End a lease on request. Raises `NotFound`."""
        self._end(self._require(handle, namespace), "LEASE_RELEASED")

    def refuse(self, lease: Lease) -> None:
        """End a lease whose cache could not be stored, unless it has ended already."""
        if lease.handle in self._leases:
            self._end(lease, "LEASE_REFUSED")

    def expire(self) -> None:
        """End all leases whose time has passed."""
        now = self._clock()
        for lease in [lease for lease in self._leases.values() if lease.expires <= now]:
            self._end(lease, "LEASE_EXPIRED")

    def expires_in_seconds(self, lease: Lease) -> float:
        """Return the seconds that a lease still runs."""
        return max(0.0, lease.expires - self._clock())

    def _require(self, handle: str, namespace: str) -> Lease:
        lease = self.find(handle, namespace)
        if lease is None:
            raise NotFound("no lease of this handle", "LEASE_UNKNOWN", {"field": "handle"})
        return lease

    def _end(self, lease: Lease, reason: str) -> None:
        tenant = lease.key.namespace
        del self._leases[lease.handle]
        del self._of_tenant[tenant][lease.handle]
        if not self._of_tenant[tenant]:
            del self._of_tenant[tenant]
        self._shares.give_back(tenant)
        metrics.LEASES_ENDED.labels(reason).inc()
        self._gone[lease.key.namespace, lease.handle] = reason
        while len(self._gone) > _REMEMBERED:
            self._gone.popitem(last=False)
        self._of_key[lease.key] -= 1
        if not self._of_key[lease.key]:
            del self._of_key[lease.key]
            self._bytes[tenant] -= lease.cache_bytes
            if not self._bytes[tenant]:
                del self._bytes[tenant]
            self._on_last(lease.key)


def key_of(handle: str, namespace: str) -> ContentKey:
    """Return the content key that a handle names. Raises `InvalidRequest`."""
    return ContentKey(namespace, Handle.parse(handle).digest)

"""A stack of tiers, the nearest first."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Sequence

from kvstore.cache import CompactCache
from kvstore.errors import InvalidParameter
from kvstore.tiers.base import (
    Expected,
    Hit,
    Lookup,
    Miss,
    MissReason,
    PutResult,
    PutStatus,
    Tier,
)
from kvstore.tiers.content_key import ContentKey
from kvstore.tiers.counters import TierCounters, TierCounts
from kvstore.tiers.deadline import Deadline
from kvstore.tiers.fault_reports import FaultReport, FaultReporter
from kvstore.tiers.write_queue import WriteQueue

# bytes of caches that may wait to be written to lower tiers
DEFAULT_WAITING_BYTES = 1 << 30
# no request waits for a queued write, but the write must end
_WRITE_BACK_SECONDS = 60.0


class WriteMode(enum.StrEnum):
    """The time of a put's answer: once every tier has answered, or once the first has stored."""

    THROUGH = "through"
    BACK = "back"


class TierStack:
    """A `Tier` that reads its tiers in order and promotes the caches that it finds.

    A cache found in a lower tier is put into every tier above: into the first at once, because
    that tier should be memory, into the others through a queue. A write that does not fit into the
    queue is dropped and counted, because a lower tier may lack a cache at any time.
    """

    def __init__(
        self,
        tiers: Sequence[Tier],
        mode: WriteMode = WriteMode.THROUGH,
        waiting_bytes: int = DEFAULT_WAITING_BYTES,
        name: str = "stack",
        clock: Callable[[], float] = time.time,
        on_fault: FaultReport = lambda tier, error: None,
    ) -> None:
        """`on_fault` is called from any thread when a tier begins or ceases to fail."""
        names = [tier.name for tier in tiers]
        if not tiers or len(set(names)) != len(names):
            raise InvalidParameter("tiers", "must be at least one, each with a name of its own")
        self._tiers = tuple(tiers)
        self._mode = mode
        self._name = name
        self._clock = clock
        self._counters = {name: TierCounters() for name in names}
        self._faults = FaultReporter(on_fault)
        self._writes = WriteQueue(waiting_bytes)

    @property
    def name(self) -> str:
        return self._name

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the caches that wait to be written to lower tiers."""
        return self._writes.waiting_bytes

    def counts(self) -> dict[str, TierCounts]:
        """Return the counts since the start, by the tier's name."""
        return {name: counters.snapshot() for name, counters in self._counters.items()}

    def flush(self, deadline: Deadline) -> bool:
        """Wait until the queue of writes is empty; False if the deadline passed before."""
        return self._writes.flush(deadline)

    def close(self) -> None:
        """Accept no further queued writes; those in the queue are still done."""
        self._writes.close()

    def put(
        self,
        key: ContentKey,
        cache: CompactCache,
        lifetime_seconds: float | None,
        deadline: Deadline,
    ) -> PutResult:
        """Return `STORED` if any tier stored the cache, otherwise the nearest tier's answer."""
        expires_at = None if lifetime_seconds is None else self._clock() + lifetime_seconds
        hit = Hit(cache, expires_at)
        results: list[PutResult] = []
        for tier in self._tiers:
            if self._mode is WriteMode.BACK and any(result.stored for result in results):
                self._put_back(tier, key, hit, promoted=False)
            else:
                results.append(self._put(tier, key, hit, deadline, promoted=False))
        return next((result for result in results if result.stored), results[0])

    def get(self, key: ContentKey, expected: Expected, deadline: Deadline) -> Lookup:
        """Return the nearest hit, or the most specific of all misses."""
        misses: list[Miss] = []
        for depth, tier in enumerate(self._tiers):
            began = time.monotonic()
            lookup = tier.get(key, expected, deadline)
            self._counters[tier.name].count_get(lookup, time.monotonic() - began)
            self._faults.record(tier.name, lookup)
            if isinstance(lookup, Hit):
                self._promote(key, lookup, depth, deadline)
                return lookup
            misses.append(lookup)
        order = list(MissReason)
        return min(misses, key=lambda miss: order.index(miss.reason))

    def delete(self, key: ContentKey, deadline: Deadline) -> bool:
        """Delete from every tier, after the queued writes, which would restore the cache."""
        flushed = self._writes.flush(deadline)
        done = [tier.delete(key, deadline) for tier in self._tiers]
        return flushed and all(done)

    def contains(self, key: ContentKey, deadline: Deadline) -> bool:
        return any(tier.contains(key, deadline) for tier in self._tiers)

    def bytes_in_use(self, namespace: str | None, deadline: Deadline) -> int | None:
        """Return the sum over tiers that know theirs, every copy counted; None if none does."""
        answers = [tier.bytes_in_use(namespace, deadline) for tier in self._tiers]
        known = [nbytes for nbytes in answers if nbytes is not None]
        return sum(known) if known else None

    def _promote(self, key: ContentKey, hit: Hit, depth: int, deadline: Deadline) -> None:
        for above, tier in enumerate(self._tiers[:depth]):
            if above == 0:
                self._put(tier, key, hit, deadline, promoted=True)
            else:
                self._put_back(tier, key, hit, promoted=True)

    def _put_back(self, tier: Tier, key: ContentKey, hit: Hit, *, promoted: bool) -> None:
        def job() -> None:
            try:
                self._put(tier, key, hit, Deadline.after(_WRITE_BACK_SECONDS), promoted=promoted)
            except InvalidParameter:
                # memory may hold a cache that readers of stored bytes would refuse
                self._counters[tier.name].count_dropped()

        if not self._writes.submit(job, hit.cache.nbytes):
            self._counters[tier.name].count_dropped()

    def _put(
        self, tier: Tier, key: ContentKey, hit: Hit, deadline: Deadline, *, promoted: bool
    ) -> PutResult:
        lifetime = None if hit.expires_at is None else hit.expires_at - self._clock()
        if lifetime is not None and lifetime <= 0:
            return PutResult(PutStatus.STORED, "expired before it was written")
        began = time.monotonic()
        result = tier.put(key, hit.cache, lifetime, deadline)
        seconds = time.monotonic() - began
        self._counters[tier.name].count_put(result, hit.cache.nbytes, seconds, promoted)
        self._faults.record(tier.name, result)
        return result

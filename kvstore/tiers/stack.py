"""Tiers over one another, the nearest first."""

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
from kvstore.tiers.fault_watch import FaultReport, FaultWatch
from kvstore.tiers.later import LaterQueue

# of caches that wait to be written below
DEFAULT_WAITING_BYTES = 1 << 30
# nobody waits for a write that is done later, but it must end
_LATER_TIMEOUT_SECONDS = 60.0


class WriteMode(enum.StrEnum):
    """`THROUGH`: a put answers once every tier has. `BACK`: once the first has."""

    THROUGH = "through"
    BACK = "back"


class TierStack:
    """A `Tier` of tiers: reads through them in order, and promotes what it found.

    A cache found below is put into every tier above it: into the first at once, since it should be
    memory, into others later. What finds no room among the writes that wait is dropped and
    counted: a lower tier may always lack a cache.
    """

    def __init__(
        self,
        tiers: Sequence[Tier],
        mode: WriteMode = WriteMode.THROUGH,
        waiting_bytes: int = DEFAULT_WAITING_BYTES,
        name: str = "stack",
        clock: Callable[[], float] = time.time,
        on_fault: FaultReport = lambda tier, ails: None,
    ) -> None:
        """`on_fault` is told the name of a tier that begins to fail, and why; from any thread."""
        names = [tier.name for tier in tiers]
        if not tiers or len(set(names)) != len(names):
            raise InvalidParameter("tiers", "must be at least one, each with a name of its own")
        self._tiers = tuple(tiers)
        self._mode = mode
        self._name = name
        self._clock = clock
        self._counters = {name: TierCounters() for name in names}
        self._watch = FaultWatch(on_fault)
        self._later = LaterQueue(waiting_bytes)

    @property
    def name(self) -> str:
        return self._name

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the caches that wait to be written below."""
        return self._later.waiting_bytes

    def counts(self) -> dict[str, TierCounts]:
        """What happened so far, by the tier's name."""
        return {name: counters.snapshot() for name, counters in self._counters.items()}

    def flush(self, timeout_seconds: float) -> bool:
        """Wait for the writes that wait; False if that took too long."""
        return self._later.flush(timeout_seconds)

    def close(self) -> None:
        """Promote and write back nothing more; what waits is still written."""
        self._later.close()

    def put(
        self,
        key: ContentKey,
        cache: CompactCache,
        lifetime_seconds: float | None,
        timeout_seconds: float,
    ) -> PutResult:
        """Stored if any tier has stored it; otherwise what the nearest tier said."""
        deadline = Deadline.after(timeout_seconds)
        expires_at = None if lifetime_seconds is None else self._clock() + lifetime_seconds
        hit = Hit(cache, expires_at)
        results: list[PutResult] = []
        for tier in self._tiers:
            if self._mode is WriteMode.BACK and any(result.stored for result in results):
                self._put_later(tier, key, hit, promoted=False)
            else:
                timeout = deadline.remaining_seconds
                results.append(self._put(tier, key, hit, timeout, promoted=False))
        return next((result for result in results if result.stored), results[0])

    def get(self, key: ContentKey, expected: Expected, timeout_seconds: float) -> Lookup:
        """The nearest hit, or of all misses the most telling."""
        deadline = Deadline.after(timeout_seconds)
        misses: list[Miss] = []
        for depth, tier in enumerate(self._tiers):
            began = time.monotonic()
            lookup = tier.get(key, expected, deadline.remaining_seconds)
            self._counters[tier.name].count_get(lookup, time.monotonic() - began)
            self._watch.saw(tier.name, lookup)
            if isinstance(lookup, Hit):
                self._promote(key, lookup, depth, deadline)
                return lookup
            misses.append(lookup)
        order = list(MissReason)
        return min(misses, key=lambda miss: order.index(miss.reason))

    def delete(self, key: ContentKey, timeout_seconds: float) -> bool:
        """Of every tier; writes that wait are done first, or they would bring it back."""
        deadline = Deadline.after(timeout_seconds)
        flushed = self._later.flush(deadline.remaining_seconds)
        done = [tier.delete(key, deadline.remaining_seconds) for tier in self._tiers]
        return flushed and all(done)

    def contains(self, key: ContentKey, timeout_seconds: float) -> bool:
        deadline = Deadline.after(timeout_seconds)
        return any(tier.contains(key, deadline.remaining_seconds) for tier in self._tiers)

    def bytes_in_use(self, namespace: str | None, timeout_seconds: float) -> int | None:
        """Of all tiers that can tell, copies counted as often as there are; None if none can."""
        deadline = Deadline.after(timeout_seconds)
        known = [tier.bytes_in_use(namespace, deadline.remaining_seconds) for tier in self._tiers]
        told = [nbytes for nbytes in known if nbytes is not None]
        return sum(told) if told else None

    def _promote(self, key: ContentKey, hit: Hit, depth: int, deadline: Deadline) -> None:
        for above, tier in enumerate(self._tiers[:depth]):
            if above == 0:
                self._put(tier, key, hit, deadline.remaining_seconds, promoted=True)
            else:
                self._put_later(tier, key, hit, promoted=True)

    def _put_later(self, tier: Tier, key: ContentKey, hit: Hit, *, promoted: bool) -> None:
        def job() -> None:
            try:
                self._put(tier, key, hit, _LATER_TIMEOUT_SECONDS, promoted=promoted)
            except InvalidParameter:
                # memory takes what no reader would
                self._counters[tier.name].count_dropped()

        if not self._later.submit(job, hit.cache.nbytes):
            self._counters[tier.name].count_dropped()

    def _put(
        self, tier: Tier, key: ContentKey, hit: Hit, timeout_seconds: float, *, promoted: bool
    ) -> PutResult:
        lifetime = None if hit.expires_at is None else hit.expires_at - self._clock()
        if lifetime is not None and lifetime <= 0:
            return PutResult(PutStatus.STORED, "expired before it was written")
        began = time.monotonic()
        result = tier.put(key, hit.cache, lifetime, timeout_seconds)
        seconds = time.monotonic() - began
        self._counters[tier.name].count_put(result, hit.cache.nbytes, seconds, promoted)
        self._watch.saw(tier.name, result)
        return result

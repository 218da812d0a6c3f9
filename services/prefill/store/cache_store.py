"""The store of caches that outlive their request: tiers, and leases on what they hold."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from headwise.errors import InvalidRequest, NotFound, Unavailable
from kvstore.cache import CompactCache, ModelFingerprint
from kvstore.errors import InvalidParameter
from kvstore.tiers import (
    Expected,
    Hit,
    Lookup,
    MemoryTier,
    Miss,
    MissReason,
    PutResult,
    PutStatus,
    Tier,
    TierStack,
    WriteMode,
)
from kvstore.tiers.content_key import ContentKey
from kvstore.tiers.counters import TierCounts
from kvstore.tiers.deadline import Deadline
from services.prefill.store.leases import Lease, Leases, key_of

log = logging.getLogger("headwise.store")

Answer = TypeVar("Answer")
# each request that waits for a slow or dead tier occupies one thread until its deadline
_THREADS = 16
# memory answers at once and does not check the deadline
_AT_ONCE = Deadline(0.0)
# tiers hold a cache for longer than a lease, so that renewing a lease seldom writes it again
_LIFETIMES = 2.0
_MAY_COME_BACK = (MissReason.TIMEOUT, MissReason.UNAVAILABLE)


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """A stored cache, and the lease whose handle named it, if the handle has one."""

    key: ContentKey
    cache: CompactCache
    lease: Lease | None


@dataclasses.dataclass(frozen=True, slots=True)
class StoreLimits:
    """Limits of the store; times in seconds.

    `timeout_seconds` bounds each call to the tiers. With `keeps_prompts`, caches stay in the tiers
    after their last lease.
    """

    timeout_seconds: float
    max_keep_seconds: float
    max_leases: int
    keeps_prompts: bool


class CacheStore:
    """Stores caches in a stack of tiers, and grants leases on them. For the event loop alone.

    `memory` is the first of `tiers`, or absent from them if it may hold nothing. A cache in memory
    is found without a thread. Faults of tiers are answers and never raised.
    """

    def __init__(
        self,
        memory: MemoryTier,
        tiers: Sequence[Tier],
        model: ModelFingerprint,
        limits: StoreLimits,
        *,
        mode: WriteMode,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._memory = memory
        self._stack = TierStack(tiers, mode, on_fault=_log_fault)
        self._memory_alone = list(tiers) == [memory]
        self._model = model
        self._limits = limits
        self._clock = clock
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="store")
        self._tasks: set[asyncio.Future[object]] = set()
        self._leases = Leases(self._end_last_lease, max_leases=limits.max_leases, clock=clock)
        # of leased caches: the time until which the tiers hold them
        self._stored_until: dict[ContentKey, float] = {}
        self._pinned: set[ContentKey] = set()

    @property
    def max_keep_seconds(self) -> float:
        """The longest TTL that a request may ask for."""
        return self._limits.max_keep_seconds

    @property
    def lease_count(self) -> int:
        """The number of running leases."""
        return len(self._leases)

    @property
    def memory_bytes(self) -> int:
        """Bytes of the caches in the memory tier."""
        return self._memory.bytes_in_use(None, _AT_ONCE)

    def counts(self) -> Mapping[str, TierCounts]:
        """Return the counts since the start, by tier."""
        return self._stack.counts()

    def checked_seconds(self, requested: float) -> float:
        """Return the requested TTL. Raises `InvalidRequest` if it is out of range."""
        if not 0 <= requested <= self.max_keep_seconds:
            raise InvalidRequest(
                f"keep_for_seconds: {requested} is not within 0 and {self.max_keep_seconds:g}",
                "PARAMETER_OUT_OF_RANGE",
                {"field": "keep_for_seconds"},
            )
        return requested

    async def keep(self, key: ContentKey, cache: CompactCache, seconds: float) -> Lease | PutStatus:
        """Store a cache and return a lease on it, or the reason why no tier stored it.

        Raises `Overloaded` where the tenant can have no further lease.
        """
        # granted before the put, so that the end of another lease does not remove the cache
        lease = self._leases.grant(key, cache, seconds)
        status = await self._store(lease, cache)
        if status is not PutStatus.STORED:
            self._leases.refuse(lease)
            return status
        return lease

    def keep_later(self, key: ContentKey, cache: CompactCache) -> None:
        """Store a cache without a lease in the background; the caller does not wait."""
        # tenants that are gone must not keep their share for ever
        lifetime = _LIFETIMES * self.max_keep_seconds
        self._in_background(lambda: self._put(key, cache, lifetime, self._deadline()))

    async def find(self, handle: str, namespace: str, within_seconds: float | None) -> Found:
        """Find a cache by its handle or content key.

        Raises `InvalidRequest`, `NotFound` with the reason, or `Unavailable` if a tier does not
        answer.
        """
        key, lease = key_of(handle, namespace), self.lease(handle, namespace)
        expected = lease.fingerprint if lease else self._model
        lookup = await self.lookup(key, expected, within_seconds)
        if not isinstance(lookup, Hit):
            kind = Unavailable if lookup.reason in _MAY_COME_BACK else NotFound
            reason = f"CACHE_{lookup.reason.upper()}"
            raise kind(f"no cache there: {lookup.reason}", reason, {"field": "handle"})
        if lease:
            self._pin(key)
        return Found(key, lookup.cache, lease)

    async def lookup(
        self, key: ContentKey, expected: Expected, within_seconds: float | None = None
    ) -> Lookup:
        """Return the cache or a miss, after `within_seconds` or the tiers' time-out at most."""
        if self._memory_alone or self._memory.contains(key, _AT_ONCE):
            lookup = self._stack.get(key, expected, _AT_ONCE)
        else:
            lookup = await self._lookup_below(key, expected, within_seconds)
        if isinstance(lookup, Miss) and lookup.reason not in _MAY_COME_BACK:
            # a lease may still run on what was lost: the next put has to write it again
            self._stored_until.pop(key, None)
        return lookup

    async def _lookup_below(
        self, key: ContentKey, expected: Expected, within_seconds: float | None
    ) -> Lookup:
        limit = self._limits.timeout_seconds
        limit = limit if within_seconds is None else min(limit, max(0.0, within_seconds))
        deadline = Deadline.after(limit)
        get = functools.partial(self._stack.get, key, expected, deadline)
        return await self._in_thread(get, deadline, Miss(MissReason.TIMEOUT))

    def lease(self, handle: str, namespace: str) -> Lease | None:
        """Return the lease of a handle, or None if it has none; asks no tier.

        Raises `InvalidRequest`, and `NotFound` for a lease that has ended.
        """
        key_of(handle, namespace)
        return self._leases.find(handle, namespace)

    async def renew(self, handle: str, namespace: str, seconds: float) -> Lease:
        """Let a lease run for so long from this moment. Raises `NotFound`."""
        lease = self._leases.renew(handle, namespace, self.checked_seconds(seconds))
        if self._stored_until.get(lease.key, 0.0) < lease.expires:
            found = await self.find(handle, namespace, None)
            await self._store(lease, found.cache)
        return lease

    def release(self, handle: str, namespace: str) -> None:
        """End a lease. Raises `NotFound`."""
        key_of(handle, namespace)
        self._leases.release(handle, namespace)

    def require_lease_available(self, namespace: str) -> None:
        """Raise `Overloaded` if the tenant can have no further lease."""
        self._leases.require_place(namespace)

    def leases_of(self, namespace: str) -> int:
        """Return the number of a tenant's leases."""
        return self._leases.held_by(namespace)

    def leased_bytes(self, namespace: str) -> int:
        """Return the bytes of the caches that a tenant has leases on."""
        return self._leases.bytes_of(namespace)

    def expires_in_seconds(self, lease: Lease) -> float:
        """Return the seconds that a lease still runs."""
        return self._leases.expires_in_seconds(lease)

    def expire_leases(self) -> None:
        """End all leases whose time has passed."""
        self._leases.expire()

    async def close(self) -> None:
        """Let queued writes end, for at most the tiers' time-out."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._limits.timeout_seconds)
        await asyncio.to_thread(self._stack.flush, self._deadline())
        self._stack.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _store(self, lease: Lease, cache: CompactCache) -> PutStatus:
        key, now = lease.key, self._clock()
        if self._stored_until.get(key, now) <= lease.expires:
            lifetime, deadline = _LIFETIMES * self.max_keep_seconds, self._deadline()
            put = functools.partial(self._put, key, cache, lifetime, deadline)
            result = await self._in_thread(put, deadline, PutResult(PutStatus.TIMEOUT))
            if not result.stored:
                return result.status
            if self._leases.held(key):
                self._stored_until[key] = now + lifetime
        self._pin(key)
        return PutStatus.STORED

    def _pin(self, key: ContentKey) -> None:
        # a pinned cache may have been evicted, where its tenant held more than its share
        if self._leases.held(key) and not self._memory.pinned(key) and self._memory.pin(key):
            self._pinned.add(key)

    def _end_last_lease(self, key: ContentKey) -> None:
        self._stored_until.pop(key, None)
        if not self._limits.keeps_prompts:
            self._drop(key)
        elif key in self._pinned:
            self._memory.unpin(key)
        self._pinned.discard(key)

    def _drop(self, key: ContentKey) -> None:
        """Free the cache's memory at once, and its place in lower tiers in the background."""
        self._memory.delete(key, _AT_ONCE)
        if not self._memory_alone:
            self._in_background(lambda: self._stack.delete(key, self._deadline()))

    def _put(
        self, key: ContentKey, cache: CompactCache, seconds: float | None, deadline: Deadline
    ) -> PutResult:
        try:
            return self._stack.put(key, cache, seconds, deadline)
        except InvalidParameter as error:
            # readers would refuse this cache, as they do one of merged rows
            log.warning("a cache cannot be kept: %s", error)
            return PutResult(PutStatus.UNAVAILABLE, str(error))

    def _deadline(self) -> Deadline:
        return Deadline.after(self._limits.timeout_seconds)

    async def _in_thread(
        self, call: Callable[[], Answer], deadline: Deadline, late: Answer
    ) -> Answer:
        """Return the call's answer, or `late` if no thread was free before the deadline."""
        work = self._threads.submit(call)
        answer = asyncio.wrap_future(work)
        done, _ = await asyncio.wait((answer,), timeout=deadline.remaining_seconds)
        # a call that has begun ends by the deadline, because every slow tier is a `BoundedTier`
        if not done and work.cancel():
            return late
        return await answer

    def _in_background(self, call: Callable[[], object]) -> None:
        task = asyncio.get_running_loop().run_in_executor(self._threads, call)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _log_fault(tier: str, error: str | None) -> None:
    """Log a fault, because requests see a miss without its cause."""
    if error is None:
        log.info("the %s store answers again", tier)
    else:
        log.warning(
            "the %s store fails, and caches are neither kept nor found there: %s", tier, error
        )

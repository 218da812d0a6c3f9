"""Where kept caches are, for the event loop."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from kvstore.cache import CompactCache
from kvstore.errors import InvalidParameter
from kvstore.tiers import (
    Expected,
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

log = logging.getLogger("headwise.store")

Answer = TypeVar("Answer")
# each request that waits for a slow or dead tier occupies one thread until its deadline
_THREADS = 16
# memory answers at once and does not check the deadline
_AT_ONCE = Deadline(0.0)


class CacheStore:
    """A stack of tiers, the nearest first, each call bounded by `timeout_seconds`.

    `memory` is the first of them, or not among them if it may hold nothing and others are there.
    What it has is found without a thread. Nothing here raises on account of a store.
    """

    def __init__(
        self,
        memory: MemoryTier,
        tiers: Sequence[Tier],
        *,
        mode: WriteMode,
        timeout_seconds: float,
    ) -> None:
        self._memory = memory
        self._stack = TierStack(tiers, mode, on_fault=_log_fault)
        self._memory_alone = list(tiers) == [memory]
        self._timeout_seconds = timeout_seconds
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="store")
        self._tasks: set[asyncio.Future[object]] = set()

    async def find(
        self, key: ContentKey, expected: Expected, within_seconds: float | None = None
    ) -> Lookup:
        """The cache, or why not; at the latest after `within_seconds`, if that is sooner."""
        if self._memory_alone or self._memory.contains(key, _AT_ONCE):
            return self._stack.get(key, expected, _AT_ONCE)
        limit = self._timeout_seconds
        limit = limit if within_seconds is None else min(limit, max(0.0, within_seconds))
        deadline = Deadline.after(limit)
        get = functools.partial(self._stack.get, key, expected, deadline)
        return await self._in_thread(get, deadline, Miss(MissReason.TIMEOUT))

    async def keep(self, key: ContentKey, cache: CompactCache, seconds: float | None) -> PutResult:
        """Put it everywhere, below for so long; pin what memory holds with `pin`."""
        deadline = Deadline.after(self._timeout_seconds)
        put = functools.partial(self._put, key, cache, seconds, deadline)
        return await self._in_thread(put, deadline, PutResult(PutStatus.TIMEOUT))

    def keep_later(self, key: ContentKey, cache: CompactCache) -> None:
        """As `keep`, for as long as there is room; nobody waits for it."""
        self._in_background(lambda: self._put(key, cache, None, self._deadline()))

    def pin(self, key: ContentKey) -> bool:
        """Keep memory from evicting it, once; False if memory has not got it."""
        return self._memory.pin(key)

    def unpin(self, key: ContentKey) -> None:
        self._memory.unpin(key)

    def drop(self, key: ContentKey) -> None:
        """Give its memory back now, and its place below as soon as possible."""
        self._memory.delete(key, _AT_ONCE)
        if not self._memory_alone:
            self._in_background(lambda: self._stack.delete(key, self._deadline()))

    @property
    def memory_bytes(self) -> int:
        return self._memory.bytes_in_use(None, _AT_ONCE)

    def counts(self) -> Mapping[str, TierCounts]:
        """What happened so far, by tier."""
        return self._stack.counts()

    async def close(self) -> None:
        """Let what waits be written, for as long as one call may take."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._timeout_seconds)
        await asyncio.to_thread(self._stack.flush, self._deadline())
        self._stack.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _put(
        self, key: ContentKey, cache: CompactCache, seconds: float | None, deadline: Deadline
    ) -> PutResult:
        try:
            return self._stack.put(key, cache, seconds, deadline)
        except InvalidParameter as error:
            # a cache that no reader would take, such as one of merged rows
            log.warning("a cache cannot be kept: %s", error)
            return PutResult(PutStatus.UNAVAILABLE, str(error))

    def _deadline(self) -> Deadline:
        return Deadline.after(self._timeout_seconds)

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

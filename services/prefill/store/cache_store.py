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

log = logging.getLogger("headwise.store")

Answer = TypeVar("Answer")
# a tier keeps to its time-out; this is for the thread that asks it
_GRACE_SECONDS = 0.25
# stores may be slow together: a dead one holds as many threads as requests wait for it
_THREADS = 16


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
        self._stack = TierStack(tiers, mode, on_fault=_tell)
        self._memory_alone = list(tiers) == [memory]
        self._timeout_seconds = timeout_seconds
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="store")
        self._tasks: set[asyncio.Future[object]] = set()

    async def find(
        self, key: ContentKey, expected: Expected, within_seconds: float | None = None
    ) -> Lookup:
        """The cache, or why not; at the latest after `within_seconds`, if that is sooner."""
        if self._memory_alone or self._memory.contains(key, 0):
            return self._stack.get(key, expected, 0)
        limit = self._timeout_seconds
        limit = limit if within_seconds is None else min(limit, max(0.0, within_seconds))
        get = functools.partial(self._stack.get, key, expected, limit)
        return await self._within(limit, get, Miss(MissReason.TIMEOUT))

    async def keep(self, key: ContentKey, cache: CompactCache, seconds: float | None) -> PutResult:
        """Put it everywhere, below for so long; pin what memory holds with `pin`."""
        limit = self._timeout_seconds
        put = functools.partial(self._put, key, cache, seconds, limit)
        return await self._within(limit, put, PutResult(PutStatus.TIMEOUT))

    def keep_later(self, key: ContentKey, cache: CompactCache) -> None:
        """As `keep`, for as long as there is room; nobody waits for it."""
        self._in_background(lambda: self._put(key, cache, None, self._timeout_seconds))

    def pin(self, key: ContentKey) -> bool:
        """Keep memory from evicting it, once; False if memory has not got it."""
        return self._memory.pin(key)

    def unpin(self, key: ContentKey) -> None:
        self._memory.unpin(key)

    def drop(self, key: ContentKey) -> None:
        """Give its memory back now, and its place below as soon as possible."""
        self._memory.delete(key, 0)
        if not self._memory_alone:
            self._in_background(lambda: self._stack.delete(key, self._timeout_seconds))

    @property
    def memory_bytes(self) -> int:
        return self._memory.bytes_in_use(None, 0)

    def counts(self) -> Mapping[str, TierCounts]:
        """What happened so far, by tier."""
        return self._stack.counts()

    async def close(self) -> None:
        """Let what waits be written, for as long as one call may take."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._timeout_seconds)
        await asyncio.to_thread(self._stack.flush, self._timeout_seconds)
        self._stack.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _put(
        self, key: ContentKey, cache: CompactCache, seconds: float | None, limit: float
    ) -> PutResult:
        try:
            return self._stack.put(key, cache, seconds, limit)
        except InvalidParameter as error:
            # a cache that no reader would take, such as one of merged rows
            log.warning("a cache cannot be kept: %s", error)
            return PutResult(PutStatus.UNAVAILABLE, str(error))

    async def _within(self, limit: float, call: Callable[[], Answer], late: Answer) -> Answer:
        work = asyncio.get_running_loop().run_in_executor(self._threads, call)
        done, _ = await asyncio.wait((work,), timeout=limit + _GRACE_SECONDS)
        return work.result() if done else late

    def _in_background(self, call: Callable[[], object]) -> None:
        task = asyncio.get_running_loop().run_in_executor(self._threads, call)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _tell(tier: str, ails: str | None) -> None:
    """To the log: what requests see is a miss, whatever the cause."""
    if ails is None:
        log.info("the %s store answers again", tier)
    else:
        log.warning(
            "the %s store fails, and caches are neither kept nor found there: %s", tier, ails
        )

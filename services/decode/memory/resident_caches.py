"""Stored caches that are resident in the pool; sequences are forked from them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable

from headwise.errors import NotFound
from headwise.v1 import cache_pb2
from kvstore.pool import SequencePages
from kvstore.shares import who_yields
from services.decode.report import TransferReport
from services.runtime.process import metrics

# tenant and digest
ResidentCacheKey = tuple[str, str]
Load = Callable[[], Awaitable[tuple[SequencePages, TransferReport]]]


@dataclasses.dataclass(slots=True, eq=False)
class ResidentCache:
    """Pages that are only forked. `uses` counts callers that are about to fork them.

    `expires` None: the cache stays until it is evicted.
    """

    pages: SequencePages
    report: TransferReport
    uses: int = 0
    expires: float | None = None


@dataclasses.dataclass(slots=True, eq=False)
class _Loading:
    task: asyncio.Task[ResidentCache]
    waiters: int = 0


class ResidentCaches:
    """All resident caches, the least recently used first.

    A cache with uses is never evicted. `borrow` belongs to the event loop; the rest may be used
    from any thread. `on_freed` is called when pages came free.
    """

    def __init__(self, *, max_caches: int, on_freed: Callable[[], None]) -> None:
        self._max_caches = max_caches
        self._on_freed = on_freed
        self._contexts: OrderedDict[ResidentCacheKey, ResidentCache] = OrderedDict()
        self._loading: dict[ResidentCacheKey, _Loading] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._contexts)

    @contextlib.asynccontextmanager
    async def borrow(
        self, key: ResidentCacheKey, stored: cache_pb2.StoredCache, load: Load
    ) -> AsyncIterator[tuple[ResidentCache, bool]]:
        """Yield the cache, and whether it was loaded for this call, until the block ends.

        Concurrent calls wait for one load; it is cancelled when the last of them is cancelled. If
        the lease of the call that began it has ended, another call loads the cache with its own.
        """
        context, fresh = await self._take(key, load)
        try:
            _extend_to_lease(context, stored)
            yield context, fresh
        finally:
            with self._lock:
                context.uses -= 1
            self._make_place(context.pages.owner)

    def evict(self, owner: str = "") -> bool:
        """Drop the owner's least recently used cache without uses; False if it has none."""
        with self._lock:
            owned = (pair for pair in self._contexts.items() if pair[1].pages.owner == owner)
            idle = next((key for key, one in owned if not one.uses), None)
            if idle is not None:
                self._drop(idle, "evicted")
        if idle is not None:
            self._on_freed()
        return idle is not None

    def expire(self) -> None:
        """Drop caches whose lease has ended, unless it was renewed since their last use."""
        now = time.monotonic()
        with self._lock:
            over = [
                key
                for key, one in self._contexts.items()
                if not one.uses and one.expires is not None and one.expires <= now
            ]
            for key in over:
                self._drop(key, "expired")
        if over:
            self._on_freed()

    def release(self, key: ResidentCacheKey) -> None:
        """Drop a cache whose lease has ended, as soon as nothing forks it."""
        with self._lock:
            context = self._contexts.get(key)
            if context is None:
                return
            if context.uses:
                # dropped as soon as no caller is about to fork the cache
                context.expires = 0.0
                return
            self._drop(key, "released")
        self._on_freed()

    def close(self) -> None:
        """Drop all caches; called when nothing runs any more."""
        with self._lock:
            for key in list(self._contexts):
                self._drop(key, "released")

    def _use(self, key: ResidentCacheKey) -> ResidentCache | None:
        with self._lock:
            context = self._contexts.get(key)
            if context is not None:
                context.uses += 1
                self._contexts.move_to_end(key)
                metrics.CONTEXTS_SHARED.inc()
            return context

    async def _take(self, key: ResidentCacheKey, load: Load) -> tuple[ResidentCache, bool]:
        """Return the cache, used, and whether `load` has loaded it."""
        while True:
            context = self._use(key)
            if context is not None:
                return context, False
            own = key not in self._loading
            try:
                return await self._wait(key, load), own
            except NotFound:
                # the lease of this call is gone, or only that of the call which began the load
                if own:
                    raise

    async def _wait(self, key: ResidentCacheKey, load: Load) -> ResidentCache:
        loading = self._loading.get(key)
        if loading is None:
            loading = self._loading[key] = _Loading(asyncio.create_task(self._load(key, load)))
        loading.waiters += 1
        try:
            return await asyncio.shield(loading.task)
        except asyncio.CancelledError:
            await self._give_up(key, loading)
            raise

    async def _give_up(self, key: ResidentCacheKey, loading: _Loading) -> None:
        task = loading.task
        if task.done():
            # both may happen in one turn of the event loop
            if not task.cancelled() and task.exception() is None:
                with self._lock:
                    task.result().uses -= 1
            return
        loading.waiters -= 1
        if not loading.waiters:
            self._loading.pop(key, None)
            task.cancel()
            await asyncio.wait((task,))

    async def _load(self, key: ResidentCacheKey, load: Load) -> ResidentCache:
        loading = self._loading[key]
        try:
            pages, report = await load()
        finally:
            if self._loading.get(key) is loading:
                del self._loading[key]
        context = ResidentCache(pages, report, uses=loading.waiters)
        with self._lock:
            self._contexts[key] = context
        return context

    def _make_place(self, owner: str) -> None:
        """Evict caches of the owner with most of them, while there are more than `max_caches`."""
        while True:
            with self._lock:
                held = Counter(one.pages.owner for one in self._contexts.values())
            if held.total() <= self._max_caches:
                return
            yielding = who_yields(held, owner, 0)
            if yielding != owner and self.evict(yielding):
                metrics.SHARES_YIELDED.labels("resident_caches").inc()
            elif not self.evict(owner):
                return

    def _drop(self, key: ResidentCacheKey, reason: str) -> None:
        self._contexts.pop(key).pages.release()
        metrics.CONTEXTS_GONE.labels(reason).inc()


def _extend_to_lease(context: ResidentCache, stored: cache_pb2.StoredCache) -> None:
    """Extend the cache's life to that of the lease; without one it stays until evicted."""
    if stored.expires_in_seconds:
        expires = time.monotonic() + stored.expires_in_seconds
        context.expires = max(context.expires or 0.0, expires)

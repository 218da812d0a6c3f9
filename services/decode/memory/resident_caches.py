"""Stored caches held in the pool, from which sequences are forked."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable

from headwise.v1 import cache_pb2
from kvstore.pool import SequencePages
from services.decode.report import TransferReport
from services.runtime.process import metrics

# tenant and digest
ResidentCacheKey = tuple[str, str]
Load = Callable[[], Awaitable[tuple[SequencePages, TransferReport]]]


@dataclasses.dataclass(slots=True, eq=False)
class ResidentCache:
    """Pages that are only forked. `uses` counts who is about to; `expires` None: when evicted."""

    pages: SequencePages
    received: TransferReport
    uses: int = 0
    expires: float | None = None


@dataclasses.dataclass(slots=True, eq=False)
class _Loading:
    task: asyncio.Task[ResidentCache]
    waiters: int = 0


class ResidentCaches:
    """The least recently used first; one that nobody is about to fork goes when room is needed.

    `borrow` belongs to the event loop; the rest may be used from any thread. `on_room` is told when
    pages came free.
    """

    def __init__(self, *, most: int, on_room: Callable[[], None]) -> None:
        self._most = most
        self._on_room = on_room
        self._contexts: OrderedDict[ResidentCacheKey, ResidentCache] = OrderedDict()
        self._loading: dict[ResidentCacheKey, _Loading] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._contexts)

    @contextlib.asynccontextmanager
    async def borrow(
        self, key: ResidentCacheKey, stored: cache_pb2.StoredCache, load: Load
    ) -> AsyncIterator[tuple[ResidentCache, bool]]:
        """The context until the block ends, and whether it was loaded for this call.

        All who want it while it is being loaded wait for one load; the last to give up ends it.
        """
        context, fresh = self._use(key), False
        if context is None:
            fresh = key not in self._loading
            context = await self._wait(key, load)
        try:
            _let_live(context, stored)
            yield context, fresh
        finally:
            with self._lock:
                context.uses -= 1
            self._make_place()

    def evict(self) -> bool:
        """Drop the least recently used; False if there is none that nobody is about to fork."""
        with self._lock:
            idle = next((key for key, one in self._contexts.items() if not one.uses), None)
            if idle is not None:
                self._drop(idle, "evicted")
        if idle is not None:
            self._on_room()
        return idle is not None

    def expire(self) -> None:
        """Drop those whose lease is over, unless it was renewed since they were last asked for."""
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
            self._on_room()

    def release(self, key: ResidentCacheKey) -> None:
        """Its lease is over: nobody may come to use it."""
        with self._lock:
            context = self._contexts.get(key)
            if context is None:
                return
            if context.uses:
                # goes as soon as nobody is about to fork it
                context.expires = 0.0
                return
            self._drop(key, "released")
        self._on_room()

    def close(self) -> None:
        """Drop all; nothing runs any more."""
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
            pages, received = await load()
        finally:
            if self._loading.get(key) is loading:
                del self._loading[key]
        context = ResidentCache(pages, received, uses=loading.waiters)
        with self._lock:
            self._contexts[key] = context
        return context

    def _make_place(self) -> None:
        while len(self._contexts) > self._most and self.evict():
            pass

    def _drop(self, key: ResidentCacheKey, reason: str) -> None:
        self._contexts.pop(key).pages.release()
        metrics.CONTEXTS_GONE.labels(reason).inc()


def _let_live(context: ResidentCache, stored: cache_pb2.StoredCache) -> None:
    """As long as the lease it was asked for by; by key alone, until it is evicted."""
    if stored.expires_in_seconds:
        expires = time.monotonic() + stored.expires_in_seconds
        context.expires = max(context.expires or 0.0, expires)

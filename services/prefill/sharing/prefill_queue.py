"""The queue of prompts: one is computed at a time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator

from headwise.errors import Overloaded
from services.runtime.process import metrics
from services.runtime.serving.status import RETRY_AFTER_SECONDS


class PrefillQueue:
    """A queue of at most `max_queued` requests, beside the one that computes."""

    def __init__(self, max_queued: int) -> None:
        self._max_queued = max_queued
        self._queued = 0
        self._computing = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[float]:
        """Hold the queue slot until the block ends; yield the seconds waited for it.

        Raises `Overloaded` if the queue is full.
        """
        began = time.perf_counter()
        async with contextlib.AsyncExitStack() as stack:
            with self._queue():
                await stack.enter_async_context(self._computing)
            with metrics.PREFILL_COMPUTING.track_inprogress():
                yield time.perf_counter() - began

    @contextlib.contextmanager
    def _queue(self) -> Iterator[None]:
        if self._computing.locked() and self._queued >= self._max_queued:
            raise Overloaded(
                f"{self._queued} prompts are waiting already",
                "QUEUE_FULL",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        self._queued += 1
        metrics.PREFILL_QUEUED.set(self._queued)
        try:
            yield
        finally:
            self._queued -= 1
            metrics.PREFILL_QUEUED.set(self._queued)

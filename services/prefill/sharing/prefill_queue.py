"""Prompts are computed one at a time; the rest wait in line."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator

from headwise.errors import Overloaded
from services.runtime.process import metrics
from services.runtime.serving.status import RETRY_AFTER_SECONDS


class Turns:
    """A line of at most `max_queued` requests before one that computes."""

    def __init__(self, max_queued: int) -> None:
        self._max_queued = max_queued
        self._queued = 0
        self._turn = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[float]:
        """Wait for the turn; yields the seconds waited. Raises `Overloaded` if the line is full."""
        began = time.perf_counter()
        async with contextlib.AsyncExitStack() as stack:
            with self._in_line():
                await stack.enter_async_context(self._turn)
            with metrics.PREFILL_COMPUTING.track_inprogress():
                yield time.perf_counter() - began

    @contextlib.contextmanager
    def _in_line(self) -> Iterator[None]:
        if self._turn.locked() and self._queued >= self._max_queued:
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

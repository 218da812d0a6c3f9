"""A prefill in progress, shared by all equal requests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator

from headwise.v1 import prefill_pb2
from kvstore.cache import CompactCache, RaggedLayer
from kvstore.wire import CacheHeader
from services.prefill.compute.prefiller import PrefillStopped
from services.prefill.compute.stop_signal import StopSignal


class Subscriber:
    """One request that reads a shared prefill; `on_failure` is called if the prefill fails."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.on_failure: Callable[[BaseException], None] | None = None


class SharedPrefill:
    """The layers of one prefill as they are computed, and its report once it is complete.

    `publish` and `progress` are for the computing thread, everything else for the event loop.
    `publish` never waits for a reader. All layers stay in memory until the last subscriber ends, so
    that a late one also receives every layer.
    """

    def __init__(self, header: CacheHeader) -> None:
        self.header = header
        self.report: prefill_pb2.PrefillReport | None = None
        # setting it ends the computation at its next layer
        self.stop = StopSignal()
        self.nbytes = 0
        self._layers: list[RaggedLayer] = []
        self._tokens_done = 0
        self._begun = False
        self._error: BaseException | None = None
        self._dropped: Exception | None = None
        self._loop = asyncio.get_running_loop()
        self._subscribers: set[Subscriber] = set()
        self._left = asyncio.Event()

    @property
    def cache(self) -> CompactCache:
        """The cache of all published layers; complete once there is a report."""
        return CompactCache(self.header.fingerprint, tuple(self._layers), self.header.tokens)

    @property
    def abandoned(self) -> bool:
        """Whether no request reads this prefill."""
        return not self._subscribers

    def publish(self, layer: RaggedLayer) -> None:
        """Add the next layer. Raises `PrefillStopped`."""
        if self.stop.is_set():
            raise PrefillStopped
        self._layers.append(layer)
        self.nbytes += layer.nbytes
        self._loop.call_soon_threadsafe(self._notify)

    def progress(self, tokens: int) -> None:
        """Set the number of prompt tokens that are computed."""
        self._tokens_done = tokens
        self._loop.call_soon_threadsafe(self._notify)

    def begin(self) -> None:
        """Mark the end of the wait in the queue; layers follow."""
        self._begun = True
        self._notify()

    def reuse(self, cache: CompactCache) -> None:
        """Complete this prefill with a cache that was found in a store."""
        self._begun = True
        self._layers += cache.layers
        self.finish(prefill_pb2.PrefillReport(reused=True))

    def finish(self, report: prefill_pb2.PrefillReport) -> None:
        """Mark the prefill as complete, with all layers published."""
        self.report = report
        self._notify()

    def fail(self, error: BaseException) -> None:
        """End every subscriber with this error, present or later, also one that is writing."""
        self._error = error
        for subscriber in tuple(self._subscribers):
            if subscriber.on_failure is not None:
                subscriber.on_failure(error)
        self._notify()

    def drop(self, error: Exception) -> None:
        """Have `left` raise this error. From any thread."""
        self._dropped = error
        self._loop.call_soon_threadsafe(self._left.set)

    async def left(self) -> None:
        """Wait until all subscribers have ended. Raises the error given to `drop`."""
        await self._left.wait()
        if self._dropped is not None:
            raise self._dropped

    @contextlib.contextmanager
    def subscribe(self) -> Iterator[Subscriber]:
        """Yield a subscriber, which ends with the block."""
        subscriber = Subscriber()
        self._subscribers.add(subscriber)
        try:
            yield subscriber
        finally:
            self._subscribers.remove(subscriber)
            if not self._subscribers:
                self._left.set()

    async def finished(self, subscriber: Subscriber) -> CompactCache:
        """Wait for the complete cache. Raises the computation's error."""
        while self.report is None:
            await self._wait(subscriber)
        return self.cache

    async def begun(self, subscriber: Subscriber) -> None:
        """Wait until the prompt has left the queue. Raises the computation's error."""
        while not self._begun:
            await self._wait(subscriber)

    async def layers(self, subscriber: Subscriber) -> AsyncIterator[RaggedLayer | int]:
        """Yield every layer in order, and between layers each new number of computed tokens.

        Raises the computation's error.
        """
        sent = reported_tokens = 0
        while True:
            while sent < len(self._layers):
                yield self._layers[sent]
                sent += 1
            if self.report is not None:
                return
            if reported_tokens != self._tokens_done:
                reported_tokens = self._tokens_done
                yield reported_tokens
                continue
            await self._wait(subscriber)

    async def _wait(self, subscriber: Subscriber) -> None:
        """Wait for the next change. Raises the computation's error."""
        if self._error is not None:
            raise self._error
        await subscriber.changed.wait()
        subscriber.changed.clear()

    def _notify(self) -> None:
        for subscriber in self._subscribers:
            subscriber.changed.set()

"""A prefill in progress, shared by all equal requests."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator

from headwise.v1 import prefill_pb2
from kvstore.cache import CompactCache, RaggedLayer
from kvstore.wire import CacheHeader
from services.prefill.compute.prefiller import PrefillStopped

# more bytes than any cache has
_ALL_BYTES = 1 << 62


class Subscriber:
    """One request that reads a shared prefill, and the number of bytes it has sent on."""

    def __init__(self, on_sent: Callable[[], None]) -> None:
        self.changed = asyncio.Event()
        self.sent_bytes = 0
        self._on_sent = on_sent

    def add_sent(self, nbytes: int) -> None:
        """Count bytes that were sent, which may let the computation go on."""
        self.sent_bytes += nbytes
        self._on_sent()


class SharedPrefill:
    """The layers of one prefill as they are computed, and its report once it is complete.

    `publish` and `progress` are for the computing thread, everything else for the event loop.
    `publish` blocks while every subscriber is more than `limit_bytes` behind, so a receiver that
    stops reading pauses the computation unless another one reads on. All layers stay in memory
    until the last subscriber ends, so that a late one also receives every layer.
    """

    def __init__(self, header: CacheHeader, limit_bytes: int) -> None:
        self.header = header
        self.report: prefill_pb2.PrefillReport | None = None
        self._limit_bytes = limit_bytes
        self._layers: list[RaggedLayer] = []
        self._published_bytes = 0
        self._tokens_done = 0
        self._begun = False
        self._error: BaseException | None = None
        self._may_publish = threading.Condition()
        # setting it ends the computation at its next layer, or in a `publish` that waits
        self.stop: threading.Event = _StopEvent(self._wake_publisher)
        self._loop = asyncio.get_running_loop()
        self._subscribers: set[Subscriber] = set()
        self._delivered = asyncio.Event()

    @property
    def cache(self) -> CompactCache:
        """The cache of all published layers; complete once there is a report."""
        return CompactCache(self.header.fingerprint, tuple(self._layers), self.header.tokens)

    @property
    def abandoned(self) -> bool:
        """Whether no request reads this prefill."""
        return not self._subscribers

    def publish(self, layer: RaggedLayer) -> None:
        """Add the next layer once a subscriber has sent enough. Raises `PrefillStopped`."""
        with self._may_publish:
            self._may_publish.wait_for(lambda: self._below_limit() or self.stop.is_set())
            if self.stop.is_set():
                raise PrefillStopped
            self._layers.append(layer)
            self._published_bytes += layer.nbytes
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
        """Raise this error in every subscriber, present or later."""
        self._error = error
        self._notify()

    async def delivered(self) -> None:
        """Wait until one subscriber has ended after completion, or all have ended."""
        await self._delivered.wait()

    @contextlib.contextmanager
    def subscribe(self) -> Iterator[Subscriber]:
        """Yield a subscriber, which ends with the block."""
        subscriber = Subscriber(self._wake_publisher)
        self._subscribers.add(subscriber)
        try:
            yield subscriber
        finally:
            self._subscribers.remove(subscriber)
            if self.report is not None or not self._subscribers:
                self._delivered.set()
            self._wake_publisher()

    async def finished(self, subscriber: Subscriber) -> CompactCache:
        """Wait for the complete cache without limiting the computation. Raises its error."""
        subscriber.add_sent(_ALL_BYTES)
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

    def _below_limit(self) -> bool:
        """Whether the fastest subscriber is less than `limit_bytes` behind."""
        sent = max((subscriber.sent_bytes for subscriber in tuple(self._subscribers)), default=0)
        return self._published_bytes - sent < self._limit_bytes

    def _wake_publisher(self) -> None:
        with self._may_publish:
            self._may_publish.notify_all()

    def _notify(self) -> None:
        for subscriber in self._subscribers:
            subscriber.changed.set()


class _StopEvent(threading.Event):
    """An event that calls `on_set` after it was set."""

    def __init__(self, on_set: Callable[[], None]) -> None:
        super().__init__()
        self._on_set = on_set

    def set(self) -> None:
        super().set()
        self._on_set()

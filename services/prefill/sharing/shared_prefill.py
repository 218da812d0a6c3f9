"""One context on its way: what there is of it so far, for any number of readers."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator

from headwise.v1 import prefill_pb2
from kvstore.cache import CompactCache, RaggedLayer
from kvstore.wire import CacheHeader
from services.prefill.compute.stopped import PrefillStopped

# bytes that no cache has
_EVERYTHING = 1 << 62


class Reader:
    """How far one reader has come; `took` says that it is done with so many bytes."""

    def __init__(self, flight: Flight) -> None:
        self._flight = flight
        self.news = asyncio.Event()
        self.taken_bytes = 0

    def took(self, nbytes: int) -> None:
        self.taken_bytes += nbytes
        self._flight.make_room()


class Flight:
    """`publish` and `progress` belong to the computing thread; the rest to the event loop.

    `publish` blocks while every reader is more than `limit_bytes` behind: a receiver that stops
    reading pauses the computation, unless another one reads on. Layers stay until the last reader
    leaves, so that who joins late gets them all.
    """

    def __init__(self, header: CacheHeader, limit_bytes: int) -> None:
        self.header = header
        self.stopped = threading.Event()
        self.report: prefill_pb2.PrefillReport | None = None
        self._limit_bytes = limit_bytes
        self._layers: list[RaggedLayer] = []
        self._published_bytes = 0
        self._tokens_done = 0
        self._begun = False
        self._error: BaseException | None = None
        self._room = threading.Condition()
        self._loop = asyncio.get_running_loop()
        self._readers: set[Reader] = set()
        self._delivered = asyncio.Event()

    @property
    def cache(self) -> CompactCache:
        """All of it, once there is a report."""
        return CompactCache(self.header.fingerprint, tuple(self._layers), self.header.tokens)

    @property
    def abandoned(self) -> bool:
        return not self._readers

    def publish(self, layer: RaggedLayer) -> None:
        """Add the next layer, once a reader has room. Raises `PrefillStopped` once stopped."""
        with self._room:
            self._room.wait_for(lambda: self._has_room() or self.stopped.is_set())
            if self.stopped.is_set():
                raise PrefillStopped
            self._layers.append(layer)
            self._published_bytes += layer.nbytes
        self._loop.call_soon_threadsafe(self._tell)

    def progress(self, tokens: int) -> None:
        """So many tokens are computed."""
        self._tokens_done = tokens
        self._loop.call_soon_threadsafe(self._tell)

    def begin(self) -> None:
        """The line is over: layers come next."""
        self._begun = True
        self._tell()

    def take(self, cache: CompactCache) -> None:
        """All layers at once, of a cache that is there."""
        self._layers += cache.layers
        self._tell()

    def finish(self, report: prefill_pb2.PrefillReport) -> None:
        """Every layer is there."""
        self.report = report
        self._tell()

    def fail(self, error: BaseException) -> None:
        """Every reader, of now and to come, gets this error."""
        self._error = error
        self._tell()

    def stop(self) -> None:
        """Make the computation end at its next layer or `publish`."""
        self.stopped.set()
        self.make_room()

    def make_room(self) -> None:
        """A reader has moved."""
        with self._room:
            self._room.notify_all()

    async def delivered(self) -> None:
        """Wait until one reader has left with all of it, or all have left."""
        await self._delivered.wait()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Reader]:
        """Take part until the block ends."""
        reader = Reader(self)
        self._readers.add(reader)
        try:
            yield reader
        finally:
            self._readers.remove(reader)
            if self.report is not None or not self._readers:
                self._delivered.set()
            self.make_room()

    async def finished(self, reader: Reader) -> CompactCache:
        """Wait for all of it, as fast as it can be computed. Raises what the flight failed with."""
        reader.took(_EVERYTHING)
        while self.report is None:
            await self._news(reader)
        return self.cache

    async def begun(self, reader: Reader) -> None:
        """Wait for the line to be over. Raises what the flight failed with."""
        while not self._begun:
            await self._news(reader)

    async def layers(self, reader: Reader) -> AsyncIterator[RaggedLayer | int]:
        """Every layer in order as it comes; between them the tokens done, where that changes.

        Raises what the flight failed with.
        """
        sent = told = 0
        while True:
            while sent < len(self._layers):
                yield self._layers[sent]
                sent += 1
            if self.report is not None:
                return
            if told != self._tokens_done:
                told = self._tokens_done
                yield told
                continue
            await self._news(reader)

    async def _news(self, reader: Reader) -> None:
        if self._error is not None:
            raise self._error
        await reader.news.wait()
        reader.news.clear()

    def _has_room(self) -> bool:
        furthest = max((reader.taken_bytes for reader in tuple(self._readers)), default=0)
        return self._published_bytes - furthest < self._limit_bytes

    def _tell(self) -> None:
        for reader in self._readers:
            reader.news.set()

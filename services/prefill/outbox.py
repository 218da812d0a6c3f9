"""Carries messages from the computing thread to the event loop, a bounded number of bytes ahead."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator

from headwise.v1 import prefill_pb2
from services.prefill.stopped import PrefillStopped


class Outbox:
    """`put` and `close` belong to the computing thread; the rest to the event loop.

    `put` blocks while more than `limit_bytes` wait to be written: a receiver that stops reading
    pauses the computation. `stop` frees whoever waits.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.stopped = threading.Event()
        self._limit_bytes = limit_bytes
        self._waiting_bytes = 0
        self._room = threading.Condition()
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[prefill_pb2.PrefillResponse | None] = asyncio.Queue()

    def put(self, response: prefill_pb2.PrefillResponse) -> None:
        """Queue a message, waiting for room. Raises `PrefillStopped` once stopped."""
        with self._room:
            self._room.wait_for(
                lambda: self._waiting_bytes < self._limit_bytes or self.stopped.is_set()
            )
            if self.stopped.is_set():
                raise PrefillStopped
            self._waiting_bytes += response.ByteSize()
        self._loop.call_soon_threadsafe(self._queue.put_nowait, response)

    def close(self) -> None:
        """No message follows."""
        self._loop.call_soon_threadsafe(self._queue.put_nowait, None)

    async def messages(self) -> AsyncGenerator[prefill_pb2.PrefillResponse, None]:
        """Every message until `close`; room is made when the consumer comes back for the next."""
        while (response := await self._queue.get()) is not None:
            yield response
            with self._room:
                self._waiting_bytes -= response.ByteSize()
                self._room.notify()

    def stop(self) -> None:
        """Make the computation end at its next layer or `put`."""
        self.stopped.set()
        with self._room:
            self._room.notify_all()

"""Writes of a streaming call, which a reader that takes nothing cannot hold up for long."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from headwise.errors import DeadlineExceeded


class ReaderLimit:
    """Writes the messages of one call, and ends the call if nothing is read for `seconds`.

    gRPC takes a message only while the reader's windows have room. Used on the event loop.
    """

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any], seconds: float) -> None:
        self._context = context
        self._seconds = seconds
        self._writing: asyncio.Timeout | None = None
        self._error: BaseException | None = None

    async def write(self, message: Any) -> None:
        """Write a message. Raises `DeadlineExceeded`, or the error given to `end`."""
        if self._error is not None:
            raise self._error
        try:
            async with asyncio.timeout(self._seconds) as self._writing:
                await self._context.write(message)
        except TimeoutError:
            raise self._error or _stalled(self._seconds) from None
        finally:
            self._writing = None

    def end(self, error: BaseException) -> None:
        """End the call with this error, also while it waits for its reader."""
        self._error = error
        if self._writing is not None:
            self._writing.reschedule(asyncio.get_running_loop().time())


def _stalled(seconds: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"nothing of this answer was read in {seconds:g} s: read on, or ask again", "READER_STALLED"
    )

"""Reads the messages of a streaming call so that cancellation frees everything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc


async def read_message(call: Any) -> Any:
    """Return the next message of a streaming call, or `grpc.aio.EOF`.

    If the task is cancelled meanwhile, the call is cancelled and the read is awaited to its end.
    grpcio 1.80 parses a read's outcome after the await, so a read that is not awaited is never
    freed, and it holds gRPC's receive buffer of up to 64 KiB.
    """
    reading = asyncio.ensure_future(call.read())
    try:
        return await asyncio.shield(reading)
    except asyncio.CancelledError:
        call.cancel()
        await asyncio.wait((reading,))
        # asyncio reports an exception that nothing retrieves
        _ = reading.cancelled() or reading.exception()
        raise


async def messages(call: Any) -> AsyncIterator[Any]:
    """Yield all messages of a streaming call. Raises the error that the call ended with."""
    while (message := await read_message(call)) is not grpc.aio.EOF:
        yield message

"""Reading the messages of a call so that leaving early frees everything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc


async def read_message(call: Any) -> Any:
    """The next message of a streaming call, or `grpc.aio.EOF`.

    Whoever is cancelled meanwhile cancels the call and sees the read to its end: what a read has
    received is freed only where it was awaited (grpcio 1.80 parses an operation's outcome after
    the await), and a message that is not freed holds gRPC's whole receive buffer, up to 64 KiB.
    """
    reading = asyncio.ensure_future(call.read())
    try:
        return await asyncio.shield(reading)
    except asyncio.CancelledError:
        call.cancel()
        await asyncio.wait((reading,))
        # looked at, or asyncio reports it as never retrieved
        _ = reading.cancelled() or reading.exception()
        raise


async def messages(call: Any) -> AsyncIterator[Any]:
    """All messages of a streaming call to its end. Raises what the call ended with."""
    while (message := await read_message(call)) is not grpc.aio.EOF:
        yield message

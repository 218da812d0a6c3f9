"""A channel for asyncio that follows the running event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc


class LoopChannel:
    """The part of a channel that stubs use, on a channel of the loop that runs at each call.

    gRPC binds a channel to one event loop. A client that outlives a loop, as between two calls of
    `asyncio.run`, gets a new channel; that of the earlier loop has ended with it.
    """

    def __init__(self, open_channel: Callable[[], grpc.aio.Channel]) -> None:
        self._open_channel = open_channel
        self._loop: asyncio.AbstractEventLoop | None = None
        self._channel: grpc.aio.Channel | None = None

    def unary_unary(self, method: str, *arguments: Any, **options: Any) -> Callable[..., Any]:
        """Return the method that a stub calls."""
        return lambda *request, **call: self.current().unary_unary(method, *arguments, **options)(
            *request, **call
        )

    def unary_stream(self, method: str, *arguments: Any, **options: Any) -> Callable[..., Any]:
        """Return the method that a stub calls."""
        return lambda *request, **call: self.current().unary_stream(method, *arguments, **options)(
            *request, **call
        )

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Return the state of the channel of the running loop."""
        return self.current().get_state(try_to_connect=try_to_connect)

    def current(self) -> grpc.aio.Channel:
        """The channel of the running loop."""
        loop = asyncio.get_running_loop()
        if self._channel is None or self._loop is not loop:
            self._channel, self._loop = self._open_channel(), loop
        return self._channel

    async def close(self) -> None:
        """Close the channel of the running loop, if there is one. Running calls are cancelled."""
        if self._channel is not None and self._loop is asyncio.get_running_loop():
            await self._channel.close()

"""The health service (grpc.health.v1). Callers need no token, so none of them may hold it up."""

from __future__ import annotations

import asyncio
from typing import Any, NoReturn

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime.serving.call_ending import CallEnding

_Response = health_pb2.HealthCheckResponse
_Context = grpc.aio.ServicerContext[Any, Any]

# a load balancer has one watch for each of its connections
_MAX_WATCHERS = 64
# a watcher that takes no status for so long is ended, so that its place is free again
_TAKE_SECONDS = 10.0


class HealthService(health_pb2_grpc.HealthServicer):
    """Statuses by the name of a service, for use on the event loop.

    `set` waits for no caller: a watcher has an event of its own and reads the status when it can
    write. `Check` is always answered; beyond `max_watchers` a `Watch` is RESOURCE_EXHAUSTED.
    """

    def __init__(
        self, max_watchers: int = _MAX_WATCHERS, take_seconds: float = _TAKE_SECONDS
    ) -> None:
        self._statuses: dict[str, int] = {}
        self._watchers: set[asyncio.Event] = set()
        self._max_watchers = max_watchers
        self._take_seconds = take_seconds

    def set(self, service: str, *, serving: bool) -> None:
        """Set the status of a service, and wake the watchers."""
        self._statuses[service] = _Response.SERVING if serving else _Response.NOT_SERVING
        for changed in self._watchers:
            changed.set()

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: _Context
    ) -> health_pb2.HealthCheckResponse:
        status = self._statuses.get(request.service)
        if status is None:
            await _end(context, grpc.StatusCode.NOT_FOUND, "no such service")
        return _Response(status=status)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: _Context
    ) -> None:
        if len(self._watchers) >= self._max_watchers:
            text = f"{self._max_watchers} watches are running: call Check"
            await _end(context, grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        changed = asyncio.Event()
        self._watchers.add(changed)
        try:
            await self._tell(request.service, changed, context)
        finally:
            self._watchers.discard(changed)

    async def _tell(self, service: str, changed: asyncio.Event, context: _Context) -> None:
        """Write the status now and whenever it differs, until the caller stops taking it."""
        told = None
        while True:
            changed.clear()
            status = self._statuses.get(service, _Response.SERVICE_UNKNOWN)
            if status != told:
                try:
                    async with asyncio.timeout(self._take_seconds):
                        await context.write(_Response(status=status))
                except TimeoutError:
                    text = "the status was not taken"
                    await _end(context, grpc.StatusCode.RESOURCE_EXHAUSTED, text)
                told = status
            await changed.wait()


async def _end(context: _Context, code: grpc.StatusCode, text: str) -> NoReturn:
    await CallEnding(code, "", text).end(context)

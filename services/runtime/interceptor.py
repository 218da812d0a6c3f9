"""The only place where an exception becomes a status, and where calls are counted and logged."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc

from headwise.errors import InternalError, to_trailing_metadata
from services.runtime import metrics
from services.runtime.logs import request_id
from services.runtime.status import to_headwise_error

REQUEST_ID_KEY = "x-request-id"
# longer ids are cut: they end up in every log line
_REQUEST_ID_LENGTH = 64

Handler = Callable[[Any, grpc.aio.ServicerContext[Any, Any]], Awaitable[Any]]

log = logging.getLogger("headwise.calls")


class StatusInterceptor(grpc.aio.ServerInterceptor):
    """Wraps Headwise's own methods; health and reflection are left as they are."""

    def __init__(self) -> None:
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self) -> None:
        """Wait until no call of Headwise's own is running."""
        await self._idle.wait()

    @contextlib.contextmanager
    def _counted(self, method: str) -> Iterator[None]:
        self._running += 1
        self._idle.clear()
        metrics.RUNNING.labels(method).inc()
        try:
            yield
        finally:
            metrics.RUNNING.labels(method).dec()
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith("/headwise."):
            return handler
        name = method.rsplit("/", 1)[1]
        kind = "unary_stream" if handler.response_streaming else "unary_unary"
        return getattr(grpc, f"{kind}_rpc_method_handler")(
            self._guarded(name, getattr(handler, kind)),
            handler.request_deserializer,
            handler.response_serializer,
        )

    def _guarded(self, method: str, handler: Handler) -> Handler:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            request_id.set(_request_id(context))
            with self._counted(method):
                return await _answer(method, handler, request, context)

        return call


async def _answer(
    method: str, handler: Handler, request: Any, context: grpc.aio.ServicerContext[Any, Any]
) -> Any:
    began, code, reason = time.perf_counter(), "OK", ""
    try:
        return await handler(request, context)
    except asyncio.CancelledError:
        code, reason = "CANCELLED", "CANCELLED"
        raise
    except Exception as error:
        # a write on a call whose client has gone ends in an internal error of gRPC's own
        if context.cancelled():
            code, reason = "CANCELLED", "CANCELLED"
            raise asyncio.CancelledError from error
        typed = to_headwise_error(error)
        code, reason = typed.code.name, typed.reason
        if isinstance(typed, InternalError):
            log.exception("%s failed", method)
        await context.abort(typed.code, typed.message, to_trailing_metadata(typed))
    finally:
        _count(method, code, reason, time.perf_counter() - began)


def _count(method: str, code: str, reason: str, seconds: float) -> None:
    metrics.REQUESTS.labels(method, code).inc()
    if reason:
        metrics.FAILURES.labels(method, metrics.FAILURE_REASONS.bounded(reason)).inc()
    log.info("%s %s %s %.3fs", method, code, reason or "-", seconds)


def _request_id(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and isinstance(value, str) and value.isprintable():
            return value[:_REQUEST_ID_LENGTH]
    return uuid.uuid4().hex[:16]

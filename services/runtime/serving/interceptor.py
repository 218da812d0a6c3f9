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

from headwise.connection import REQUEST_ID_KEY, is_token
from headwise.errors import HeadwiseError, InternalError
from headwise.tracing import annotate, server_span
from services.runtime.process import metrics
from services.runtime.process.logs import request_id
from services.runtime.replicas.routing import CallRouter
from services.runtime.security.authentication import Authentication
from services.runtime.security.identity import Identity, set_identity
from services.runtime.serving.call_ending import CallEnding, drop_frames
from services.runtime.serving.request_size import require_size, sized
from services.runtime.serving.status import to_headwise_error

# longer ids are cut, because every log line contains the id
_REQUEST_ID_LENGTH = 64

# the calls that compute or send a cache, or generate: those that `streams` of a tenant limits
_COUNTED = {
    "/headwise.v1.DecodeService/Generate",
    "/headwise.v1.PrefillService/Prefill",
    "/headwise.v1.CacheService/FetchCache",
    "/headwise.v1.CacheService/KeepCache",
}

Metadata = tuple[tuple[str, str | bytes], ...]
Handler = Callable[[Any, grpc.aio.ServicerContext[Any, Any]], Awaitable[Any]]

log = logging.getLogger("headwise.calls")


class StatusInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the methods of Headwise; health and reflection are not wrapped."""

    def __init__(self, authentication: Authentication, router: CallRouter | None = None) -> None:
        self._authentication = authentication
        self._router = router
        self._running = 0
        self._worked = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self) -> None:
        """Wait until no call of a Headwise method is running."""
        await self._idle.wait()

    async def quiet(self, seconds: float) -> None:
        """Wait until a call has run since the last wait, and then none for `seconds`."""
        await self._worked.wait()
        while self._worked.is_set():
            await self._idle.wait()
            self._worked.clear()
            await asyncio.sleep(seconds)

    @contextlib.contextmanager
    def _counted(self, method: str) -> Iterator[None]:
        self._running += 1
        self._worked.set()
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
        kind = "unary_stream" if handler.response_streaming else "unary_unary"
        # read once: gRPC decodes all metadata again, and logs what it cannot decode, at each look
        metadata = tuple(handler_call_details.invocation_metadata or ())
        return getattr(grpc, f"{kind}_rpc_method_handler")(
            self._guarded(method, self._routed(method, getattr(handler, kind), kind), metadata),
            sized(handler.request_deserializer),
            _serialize(handler.response_serializer),
        )

    def _routed(self, method: str, handler: Handler, kind: str) -> Handler:
        """Return a handler that has another replica answer the calls which are for it."""
        router = self._router
        if router is None:
            return handler

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            streams = kind == "unary_stream"
            passed_on = await router.passed_on(method, request, context, streams=streams)
            if passed_on is None:
                return await handler(request, context)
            return None if streams else passed_on.answer

        return call

    def _guarded(self, method: str, handler: Handler, metadata: Metadata) -> Handler:
        """Return a handler that knows its caller and whose errors become a status."""
        path, name = method[1:], method.rsplit("/", 1)[1]

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            request_id.set(_request_id(metadata))
            with self._counted(name):
                try:
                    identity = self._authentication.identify(metadata)
                except HeadwiseError as error:
                    refusal = CallEnding.of(error)
                else:
                    set_identity(identity)
                    counted = _checked(handler, identity if method in _COUNTED else None)
                    with server_span(path, metadata, request_id.get()):
                        return await _answer(name, counted, request, context)
                # no span: a caller that is not known decides nothing of what is traced
                _count(name, refusal.code.name, refusal.reason, 0.0)
                return await refusal.end(context)

        return call


def _checked(handler: Handler, identity: Identity | None) -> Handler:
    """Return a handler of requests that are not too large; it takes one stream of the identity."""

    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        require_size(request)
        if identity is None:
            return await handler(request, context)
        with identity.allowance.stream():
            return await handler(request, context)

    return call


def _serialize(serializer: Callable[[Any], bytes] | None) -> Callable[[Any], bytes] | None:
    """Return a serializer that leaves another replica's bytes as they are."""
    if serializer is None:
        return None
    return lambda message: message if isinstance(message, bytes) else serializer(message)


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
        # a write to a call that the client has closed raises an internal error of gRPC, also
        # before the event loop has learned of it
        closed = context.cancelled() or isinstance(error, grpc.aio.InternalError)
        ending = None if closed else _ending(method, error)
        code, reason = (ending.code.name, ending.reason) if ending else ("CANCELLED", "CANCELLED")
        drop_frames(error)
    finally:
        _count(method, code, reason, time.perf_counter() - began)
    if ending is None:
        raise asyncio.CancelledError
    return await ending.end(context)


def _ending(method: str, error: Exception) -> CallEnding:
    typed = to_headwise_error(error)
    if isinstance(typed, InternalError):
        log.exception("%s failed", method)
    return CallEnding.of(typed)


def _count(method: str, code: str, reason: str, seconds: float) -> None:
    metrics.REQUESTS.labels(method, code).inc()
    if reason:
        metrics.FAILURES.labels(method, metrics.FAILURE_REASONS.bounded(reason)).inc()
    annotate({"rpc.response.status_code": code, "headwise.reason": reason}, failed=bool(reason))
    log.info("%s %s %s %.3fs", method, code, reason or "-", seconds)


def _request_id(metadata: Metadata) -> str:
    for key, value in metadata:
        if key == REQUEST_ID_KEY and isinstance(value, str) and is_token(value):
            return value[:_REQUEST_ID_LENGTH]
    return uuid.uuid4().hex[:16]

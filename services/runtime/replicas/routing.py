"""Passes a call on to the replica that has the session or the lease which the request names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import grpc

from headwise.connection import AUTHORIZATION_KEY, REQUEST_ID_KEY, TENANT_KEY, Metadata
from headwise.errors import HeadwiseError, Unavailable, from_rpc_error
from headwise.reading import messages
from headwise.tracing import outgoing
from services.runtime.process import metrics
from services.runtime.process.logs import request_id
from services.runtime.replicas.peers import Peers

# marks a call from another replica, which is never passed on again
PASSED_ON_KEY = "x-headwise-passed-on"
# the caller's own identity goes with the call: the other replica decides as this one does
_KEPT = (AUTHORIZATION_KEY, TENANT_KEY)

_Context = grpc.aio.ServicerContext[Any, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """Reads the tag of another replica from a request, if it names one.

    `gone` makes the error for a replica that is not there any more; None has the call answered
    here, as one without a tag.
    """

    foreign_tag: Callable[[Any], str | None]
    gone: Callable[[], HeadwiseError] | None


@dataclasses.dataclass(frozen=True, slots=True)
class PassedOn:
    """The answer of another replica to a unary call, serialized; empty after a stream."""

    answer: bytes


# by the type of the request
Routes = Mapping[type, Route]


class CallRouter:
    """Passes calls on to the replicas that they name, for the event loop alone."""

    def __init__(self, routes: Routes, peers: Peers) -> None:
        self._routes = routes
        self._peers = peers

    async def passed_on(
        self, path: str, request: Any, context: _Context, *, streams: bool
    ) -> PassedOn | None:
        """Have another replica answer the call if the request names one.

        Returns None if the call is to be answered here. The messages of a stream are written as
        they come. Raises the typed error of the other replica.
        """
        route = self._routes.get(type(request))
        tag = route.foreign_tag(request) if route else None
        if route is None or tag is None or _was_passed_on(context):
            return None
        metadata = _metadata(context)
        channel = await self._peers.find(tag, metadata)
        if channel is not None:
            metrics.PASSED_ON.labels(path.rsplit("/", 1)[1]).inc()
            try:
                call = _begin(channel, path, request, context, metadata)
                return PassedOn(await _read(call, context, streams))
            except _Unreachable as error:
                self._peers.forget(tag)
                if error.begun or await self._peers.find(tag, metadata) is not None:
                    message = "the replica that this call is for cannot be reached"
                    raise Unavailable(message, "REPLICA_UNREACHABLE") from error
        if route.gone is None:
            return None
        raise route.gone()

    async def close(self) -> None:
        """Close the channels to the replicas."""
        await self._peers.close()


class _Unreachable(Exception):
    """The connection failed; `begun` if a part of the answer had arrived."""

    def __init__(self, begun: bool) -> None:
        super().__init__()
        self.begun = begun


def _was_passed_on(context: _Context) -> bool:
    return any(key == PASSED_ON_KEY for key, _ in context.invocation_metadata() or ())


def _metadata(context: _Context) -> Metadata:
    kept = [
        (key, value)
        for key, value in context.invocation_metadata() or ()
        if key in _KEPT and isinstance(value, str)
    ]
    own = ((REQUEST_ID_KEY, request_id.get()), (PASSED_ON_KEY, "1"))
    return (*kept, *own, *outgoing())


def _begin(
    channel: grpc.aio.Channel, path: str, request: Any, context: _Context, metadata: Metadata
) -> Any:
    # it reads the one message of a unary method as well
    method: grpc.aio.UnaryStreamMultiCallable[Any, bytes] = channel.unary_stream(
        path, request_serializer=type(request).SerializeToString
    )
    return method(request, timeout=context.time_remaining(), metadata=metadata)


async def _read(call: Any, context: _Context, streams: bool) -> bytes:
    """Write the messages of a stream; return that of a unary method."""
    begun, answer = False, b""
    try:
        async for message in messages(call):
            begun = True
            if streams:
                await context.write(message)
            else:
                answer = message
    except grpc.aio.AioRpcError as error:
        typed = from_rpc_error(error)
        if isinstance(typed, Unavailable) and typed.reason in (typed.code.name, "STREAM_RESET"):
            # gRPC's own words, which hold an address
            raise _Unreachable(begun) from error
        raise typed from error
    finally:
        call.cancel()
    return answer

"""Calls of a client that keep, describe, renew and release stored caches."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, Unpack

import grpc

from headwise.connection import Connection, Metadata
from headwise.errors import from_rpc_error
from headwise.requests import LeaseOptions, Policy, Prompt, keep_request, renew_request
from headwise.results import StoredCache, stored_from_proto
from headwise.v1 import store_pb2, store_pb2_grpc

_Response = TypeVar("_Response")
_TIMEOUT_SECONDS = 10.0


class CacheCalls:
    """Calls for stored caches, whose handles `generate(..., cache_handle=...)` takes.

    Every method raises `NotFound` for a cache that is gone; the error's reason says why.
    """

    def __init__(self, stub: store_pb2_grpc.CacheServiceStub, connection: Connection) -> None:
        self._stub = stub
        self._connection = connection

    def keep(
        self,
        context: Prompt,
        *,
        policy: Policy | str = "",
        codec: str = "",
        timeout_seconds: float | None = None,
        **lease: Unpack[LeaseOptions],
    ) -> StoredCache:
        """Prefill a document, or the first messages of a conversation, and keep the cache.

        `ttl_seconds`, required: how long the lease runs unless it is renewed. Later questions are
        unknown at this point; the policy `full` keeps every row. Raises `Overloaded` if no tier has
        room.
        """
        request = keep_request(context, policy, codec, lease)
        return self._ask(self._stub.KeepCache, request, timeout_seconds)

    def describe(self, handle: str) -> StoredCache:
        """Describe the cache of a handle or a content key. The lease is not renewed."""
        request = store_pb2.DescribeCacheRequest(handle=handle)
        return self._ask(self._stub.DescribeCache, request)

    def renew(self, handle: str, ttl_seconds: float = 0.0, **earlier: float) -> StoredCache:
        """Let the lease run for `ttl_seconds` from this moment; 0 means its first TTL."""
        request = renew_request(handle, ttl_seconds, earlier)
        return self._ask(self._stub.RenewLease, request)

    def release(self, handle: str) -> None:
        """End the lease. When the last lease of a cache ends, the cache's memory is freed."""
        request = store_pb2.ReleaseLeaseRequest(handle=handle)
        _call(self._stub.ReleaseLease, request, _TIMEOUT_SECONDS, self._connection.metadata())

    def _ask(
        self,
        method: Callable[..., Any],
        request: object,
        timeout_seconds: float | None = _TIMEOUT_SECONDS,
    ) -> StoredCache:
        return stored_from_proto(
            _call(method, request, timeout_seconds, self._connection.metadata()).cache
        )


class AsyncCacheCalls:
    """The calls of `CacheCalls`, as coroutines."""

    def __init__(self, stub: store_pb2_grpc.CacheServiceStub, connection: Connection) -> None:
        self._stub: Any = stub
        self._connection = connection

    async def keep(
        self,
        context: Prompt,
        *,
        policy: Policy | str = "",
        codec: str = "",
        timeout_seconds: float | None = None,
        **lease: Unpack[LeaseOptions],
    ) -> StoredCache:
        """Prefill and keep a cache; see `CacheCalls.keep`."""
        request = keep_request(context, policy, codec, lease)
        return await self._ask(self._stub.KeepCache, request, timeout_seconds)

    async def describe(self, handle: str) -> StoredCache:
        """Describe a cache; see `CacheCalls.describe`."""
        request = store_pb2.DescribeCacheRequest(handle=handle)
        return await self._ask(self._stub.DescribeCache, request)

    async def renew(self, handle: str, ttl_seconds: float = 0.0, **earlier: float) -> StoredCache:
        """Renew a lease; see `CacheCalls.renew`."""
        request = renew_request(handle, ttl_seconds, earlier)
        return await self._ask(self._stub.RenewLease, request)

    async def release(self, handle: str) -> None:
        """End a lease; see `CacheCalls.release`."""
        request = store_pb2.ReleaseLeaseRequest(handle=handle)
        await _await(
            self._stub.ReleaseLease, request, _TIMEOUT_SECONDS, self._connection.metadata()
        )

    async def _ask(
        self,
        method: Callable[..., Awaitable[Any]],
        request: object,
        timeout_seconds: float | None = _TIMEOUT_SECONDS,
    ) -> StoredCache:
        answer = await _await(method, request, timeout_seconds, self._connection.metadata())
        return stored_from_proto(answer.cache)


def _call(
    method: Callable[..., _Response], request: object, seconds: float | None, metadata: Metadata
) -> _Response:
    try:
        return method(request, timeout=seconds, metadata=metadata)
    except grpc.RpcError as rpc_error:
        raise from_rpc_error(rpc_error) from rpc_error


async def _await(
    method: Callable[..., Awaitable[Any]],
    request: object,
    seconds: float | None,
    metadata: Metadata,
) -> Any:
    try:
        return await method(request, timeout=seconds, metadata=metadata)
    except grpc.RpcError as rpc_error:
        raise from_rpc_error(rpc_error) from rpc_error

"""Stored caches, from the client's side."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc

from headwise.connection import Connection, Metadata
from headwise.errors import from_rpc_error
from headwise.requests import Policy, Prompt, keep_request
from headwise.results import StoredCache, stored_from_proto
from headwise.v1 import store_pb2, store_pb2_grpc

_Response = TypeVar("_Response")
_TIMEOUT_SECONDS = 10.0


class CacheCalls:
    """Stored caches are what `generate(..., cache_handle=...)` goes on from.

    Of one that is gone every method raises `NotFound`, whose reason tells why.
    """

    def __init__(self, stub: store_pb2_grpc.CacheServiceStub, connection: Connection) -> None:
        self._stub = stub
        self._connection = connection

    def keep(
        self,
        context: Prompt,
        *,
        keep_for_seconds: float,
        policy: Policy | str = "",
        codec: str = "",
        timeout_seconds: float | None = None,
    ) -> StoredCache:
        """Prefill a document or the messages a conversation begins with, and keep the cache.

        What will be asked about it is not known yet: the policy `full` forgets nothing. Raises
        `Overloaded` if no store has room.
        """
        request = keep_request(context, policy, codec, keep_for_seconds)
        return self._ask(self._stub.KeepCache, request, timeout_seconds)

    def describe(self, handle: str) -> StoredCache:
        """What a handle or a content key stands for. Looking does not keep it longer."""
        request = store_pb2.DescribeCacheRequest(handle=handle)
        return self._ask(self._stub.DescribeCache, request)

    def renew(self, handle: str, keep_for_seconds: float = 0.0) -> StoredCache:
        """Let the lease run for so long from now; 0 for as long as at first."""
        request = store_pb2.RenewLeaseRequest(handle=handle, keep_for_seconds=keep_for_seconds)
        return self._ask(self._stub.RenewLease, request)

    def release(self, handle: str) -> None:
        """End the lease; with the last one the cache's memory is given back."""
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
    """As `CacheCalls`, to be awaited."""

    def __init__(self, stub: store_pb2_grpc.CacheServiceStub, connection: Connection) -> None:
        self._stub: Any = stub
        self._connection = connection

    async def keep(
        self,
        context: Prompt,
        *,
        keep_for_seconds: float,
        policy: Policy | str = "",
        codec: str = "",
        timeout_seconds: float | None = None,
    ) -> StoredCache:
        request = keep_request(context, policy, codec, keep_for_seconds)
        return await self._ask(self._stub.KeepCache, request, timeout_seconds)

    async def describe(self, handle: str) -> StoredCache:
        request = store_pb2.DescribeCacheRequest(handle=handle)
        return await self._ask(self._stub.DescribeCache, request)

    async def renew(self, handle: str, keep_for_seconds: float = 0.0) -> StoredCache:
        request = store_pb2.RenewLeaseRequest(handle=handle, keep_for_seconds=keep_for_seconds)
        return await self._ask(self._stub.RenewLease, request)

    async def release(self, handle: str) -> None:
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

"""Calls to prefill's CacheService that decode makes for its clients."""

from __future__ import annotations

from typing import TypeVar

import grpc

from headwise.v1 import store_pb2, store_pb2_grpc
from services.decode.link.prefill_errors import prefill_errors
from services.decode.link.prefill_link import PrefillLink

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class StoredCacheCalls:
    """The methods of CacheService with one answer, each for a tenant's namespace.

    A timeout of None sets no deadline. Every method raises the typed error that prefill answers
    with.
    """

    def __init__(self, target: str, link: PrefillLink) -> None:
        self._target = target
        self._link = link

    async def keep(
        self, request: store_pb2.KeepCacheRequest, namespace: str, timeout_seconds: float | None
    ) -> store_pb2.KeepCacheResponse:
        """Have a new cache computed and stored."""
        return await self._call(self._stub().KeepCache, request, namespace, timeout_seconds)

    async def describe(
        self,
        request: store_pb2.DescribeCacheRequest,
        namespace: str,
        timeout_seconds: float | None,
    ) -> store_pb2.DescribeCacheResponse:
        """Return the description of a stored cache."""
        return await self._call(self._stub().DescribeCache, request, namespace, timeout_seconds)

    async def renew(
        self, request: store_pb2.RenewLeaseRequest, namespace: str, timeout_seconds: float | None
    ) -> store_pb2.RenewLeaseResponse:
        """Extend a lease."""
        return await self._call(self._stub().RenewLease, request, namespace, timeout_seconds)

    async def release(
        self, request: store_pb2.ReleaseLeaseRequest, namespace: str, timeout_seconds: float | None
    ) -> store_pb2.ReleaseLeaseResponse:
        """End a lease."""
        return await self._call(self._stub().ReleaseLease, request, namespace, timeout_seconds)

    def _stub(self) -> store_pb2_grpc.CacheServiceStub:
        # the channel changes with the certificates
        return store_pb2_grpc.CacheServiceStub(self._link.channel)

    async def _call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        namespace: str,
        timeout_seconds: float | None,
    ) -> _Response:
        metadata = self._link.metadata(namespace)
        with prefill_errors(self._target):
            return await method(request, timeout=timeout_seconds, metadata=metadata)

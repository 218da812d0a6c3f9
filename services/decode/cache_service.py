"""Stored caches belong to prefill: what clients ask about them is passed on."""

from __future__ import annotations

from typing import Any

import grpc

from headwise.errors import NotSupported
from headwise.v1 import store_pb2, store_pb2_grpc
from services.decode.link.prefill_source import PrefillSource
from services.decode.memory.resident_caches import Contexts
from services.runtime.security.identity import current_namespace

_Context = grpc.aio.ServicerContext[Any, Any]


class CacheForwarder(store_pb2_grpc.CacheServiceServicer):
    """Implements headwise.v1.CacheService, but for FetchCache, by asking prefill."""

    def __init__(self, source: PrefillSource, contexts: Contexts) -> None:
        self._source = source
        self._contexts = contexts

    async def KeepCache(  # noqa: N802
        self, request: store_pb2.KeepCacheRequest, context: _Context
    ) -> store_pb2.KeepCacheResponse:
        answer: store_pb2.KeepCacheResponse = await self._pass_on("KeepCache", request, context)
        return answer

    async def DescribeCache(  # noqa: N802
        self, request: store_pb2.DescribeCacheRequest, context: _Context
    ) -> store_pb2.DescribeCacheResponse:
        answer: store_pb2.DescribeCacheResponse = await self._pass_on(
            "DescribeCache", request, context
        )
        return answer

    async def RenewLease(  # noqa: N802
        self, request: store_pb2.RenewLeaseRequest, context: _Context
    ) -> store_pb2.RenewLeaseResponse:
        answer: store_pb2.RenewLeaseResponse = await self._pass_on("RenewLease", request, context)
        return answer

    async def ReleaseLease(  # noqa: N802
        self, request: store_pb2.ReleaseLeaseRequest, context: _Context
    ) -> store_pb2.ReleaseLeaseResponse:
        answer: store_pb2.ReleaseLeaseResponse = await self._pass_on(
            "ReleaseLease", request, context
        )
        # another lease may still run; who asks by that one has it fetched again
        self._contexts.release((current_namespace(), request.handle.partition(".")[0]))
        return answer

    async def FetchCache(  # noqa: N802
        self, request: store_pb2.FetchCacheRequest, context: _Context
    ) -> None:
        raise NotSupported("decode sends no caches: ask prefill", "ASK_PREFILL")

    async def _pass_on(self, method: str, request: Any, context: _Context) -> Any:
        namespace, timeout = current_namespace(), context.time_remaining()
        return await self._source.ask(method, request, namespace, timeout)

"""Decode's CacheService: requests about stored caches are forwarded to prefill."""

from __future__ import annotations

from typing import Any

import grpc

from headwise.errors import NotSupported
from headwise.v1 import store_pb2, store_pb2_grpc
from services.decode.link.prefill_source import PrefillSource
from services.decode.memory.resident_caches import ResidentCaches
from services.runtime.security.identity import current_allowance, current_namespace
from services.runtime.serving.handles import Handle

_Context = grpc.aio.ServicerContext[Any, Any]


class CacheForwarder(store_pb2_grpc.CacheServiceServicer):
    """Implements headwise.v1.CacheService, except FetchCache, by calls to prefill."""

    def __init__(self, source: PrefillSource, resident_caches: ResidentCaches) -> None:
        self._calls = source.stored_caches
        self._resident_caches = resident_caches

    async def KeepCache(  # noqa: N802
        self, request: store_pb2.KeepCacheRequest, context: _Context
    ) -> store_pb2.KeepCacheResponse:
        allowance = current_allowance()
        # decode does not know the tokens before prefill has answered
        allowance.take_prompt(0)
        answer = await self._calls.keep(request, current_namespace(), context.time_remaining())
        allowance.take_answer(answer.cache.tokens)
        return answer

    async def DescribeCache(  # noqa: N802
        self, request: store_pb2.DescribeCacheRequest, context: _Context
    ) -> store_pb2.DescribeCacheResponse:
        return await self._calls.describe(request, current_namespace(), context.time_remaining())

    async def RenewLease(  # noqa: N802
        self, request: store_pb2.RenewLeaseRequest, context: _Context
    ) -> store_pb2.RenewLeaseResponse:
        return await self._calls.renew(request, current_namespace(), context.time_remaining())

    async def ReleaseLease(  # noqa: N802
        self, request: store_pb2.ReleaseLeaseRequest, context: _Context
    ) -> store_pb2.ReleaseLeaseResponse:
        namespace = current_namespace()
        answer = await self._calls.release(request, namespace, context.time_remaining())
        # if another lease on the cache still runs, the next request with it fetches the cache again
        self._resident_caches.release((namespace, Handle.parse(request.handle).digest))
        return answer

    async def FetchCache(  # noqa: N802
        self, request: store_pb2.FetchCacheRequest, context: _Context
    ) -> None:
        raise NotSupported("decode sends no caches: ask prefill", "ASK_PREFILL")

"""Finds the origin that a Generate request names."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from headwise.errors import InvalidRequest
from headwise.v1 import decode_pb2, store_pb2
from kvstore.errors import CorruptCache
from services.decode.arriving_caches import ArrivingCaches
from services.decode.link.stored_cache_calls import StoredCacheCalls
from services.decode.memory.resident_caches import ResidentCaches
from services.decode.memory.sessions import Sessions
from services.decode.origin import Origin
from services.decode.origins import NewPrompt, SessionTurn, StoredContext
from services.runtime.security.identity import current_namespace, current_tenant
from services.runtime.serving.handles import Handle


class OriginLookup:
    """Finds origins for the tenant of the current call."""

    def __init__(
        self,
        sessions: Sessions,
        resident_caches: ResidentCaches,
        arrivals: ArrivingCaches,
        stored_caches: StoredCacheCalls,
    ) -> None:
        self._sessions = sessions
        self._resident_caches = resident_caches
        self._arrivals = arrivals
        self._stored_caches = stored_caches

    @contextlib.asynccontextmanager
    async def find(
        self, request: decode_pb2.GenerateRequest, timeout_seconds: float | None
    ) -> AsyncIterator[Origin]:
        """Yield the origin; its session, if it has one, is borrowed until the block ends.

        Raises `InvalidRequest` for a request that names two, and `NotFound` or `Refused` for a
        session or a stored cache that cannot be used.
        """
        if request.cache_handle:
            yield await self._stored_context(request, timeout_seconds)
        elif request.session_id:
            session = self._sessions.borrow(request.session_id, current_tenant())
            try:
                yield SessionTurn(self._sessions, session, self._arrivals)
            finally:
                self._sessions.give_back(session)
        else:
            yield NewPrompt(self._arrivals, current_namespace())

    async def _stored_context(
        self, request: decode_pb2.GenerateRequest, timeout_seconds: float | None
    ) -> StoredContext:
        if request.session_id:
            message = "cache_handle: a session cannot begin again on a stored cache"
            raise InvalidRequest(message, "HANDLE_ON_SESSION", {"field": "cache_handle"})
        handle, namespace = request.cache_handle, current_namespace()
        answer = await self._stored_caches.describe(
            store_pb2.DescribeCacheRequest(handle=handle), namespace, timeout_seconds
        )
        if answer.cache.key != Handle.parse(handle).digest:
            raise CorruptCache("prefill described another cache than the handle's")
        return StoredContext(self._resident_caches, self._arrivals, handle, answer.cache, namespace)

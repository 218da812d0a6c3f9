"""Calls of a client that list, describe, fork and release sessions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

from headwise.connection import Connection
from headwise.errors import from_rpc_error
from headwise.results import SessionInfo, session_from_proto
from headwise.v1 import decode_pb2, decode_pb2_grpc

_TIMEOUT_SECONDS = 10.0


class SessionCalls:
    """Calls for sessions, which `generate(..., session_ttl_seconds=...)` keeps and names.

    Every method raises `NotFound` for a session that is gone; the error's reason says why.
    """

    def __init__(
        self,
        stub: decode_pb2_grpc.DecodeServiceStub,
        connection: Connection,
        replicas: Sequence[decode_pb2_grpc.DecodeServiceStub] = (),
    ) -> None:
        self._stub = stub
        self._connection = connection
        self._replicas = replicas or (stub,)

    def list(self) -> list[SessionInfo]:
        """List the tenant's sessions, the least recently used first, target by target."""
        request = decode_pb2.ListSessionsRequest()
        answers = [self._call(replica.ListSessions, request) for replica in self._replicas]
        return [session_from_proto(session) for each in answers for session in each.sessions]

    def describe(self, session_id: str) -> SessionInfo:
        """Describe one session. Describing a session does not count as use."""
        request = decode_pb2.DescribeSessionRequest(session_id=session_id)
        return session_from_proto(self._call(self._stub.DescribeSession, request).session)

    def fork(self, session_id: str) -> SessionInfo:
        """Create a second session in the same state.

        Raises `Refused` while a generation runs on the session.
        """
        request = decode_pb2.ForkSessionRequest(session_id=session_id)
        return session_from_proto(self._call(self._stub.ForkSession, request).session)

    def release(self, session_id: str) -> None:
        """Free the session's memory. Raises `Refused` while a generation runs on the session."""
        request = decode_pb2.ReleaseSessionRequest(session_id=session_id)
        self._call(self._stub.ReleaseSession, request)

    def _call(self, method: Any, request: Any) -> Any:
        try:
            return method(request, timeout=_TIMEOUT_SECONDS, metadata=self._connection.metadata())
        except grpc.RpcError as rpc_error:
            raise from_rpc_error(rpc_error) from rpc_error


class AsyncSessionCalls:
    """The calls of `SessionCalls`, as coroutines."""

    def __init__(
        self,
        stub: decode_pb2_grpc.DecodeServiceStub,
        connection: Connection,
        replicas: Sequence[decode_pb2_grpc.DecodeServiceStub] = (),
    ) -> None:
        self._stub: Any = stub
        self._connection = connection
        self._replicas: Any = replicas or (stub,)

    async def list(self) -> list[SessionInfo]:
        """See `SessionCalls.list`."""
        request = decode_pb2.ListSessionsRequest()
        answers = [await self._call(replica.ListSessions, request) for replica in self._replicas]
        return [session_from_proto(session) for each in answers for session in each.sessions]

    async def describe(self, session_id: str) -> SessionInfo:
        """See `SessionCalls.describe`."""
        request = decode_pb2.DescribeSessionRequest(session_id=session_id)
        return session_from_proto((await self._call(self._stub.DescribeSession, request)).session)

    async def fork(self, session_id: str) -> SessionInfo:
        """See `SessionCalls.fork`."""
        request = decode_pb2.ForkSessionRequest(session_id=session_id)
        return session_from_proto((await self._call(self._stub.ForkSession, request)).session)

    async def release(self, session_id: str) -> None:
        """See `SessionCalls.release`."""
        request = decode_pb2.ReleaseSessionRequest(session_id=session_id)
        await self._call(self._stub.ReleaseSession, request)

    async def _call(self, method: Any, request: Any) -> Any:
        metadata = self._connection.metadata()
        try:
            return await method(request, timeout=_TIMEOUT_SECONDS, metadata=metadata)
        except grpc.RpcError as rpc_error:
            raise from_rpc_error(rpc_error) from rpc_error

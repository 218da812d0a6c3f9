"""Sessions of a decode service, from the client's side."""

from __future__ import annotations

from typing import Any

import grpc

from headwise.connection import Connection
from headwise.errors import from_rpc_error
from headwise.results import SessionInfo, session_from_proto
from headwise.v1 import decode_pb2, decode_pb2_grpc

_TIMEOUT_SECONDS = 10.0


class SessionCalls:
    """Sessions are kept by `generate(..., keep_session_seconds=...)` and named in its result.

    Of one that is gone every method raises `NotFound`, whose reason tells why.
    """

    def __init__(self, stub: decode_pb2_grpc.DecodeServiceStub, connection: Connection) -> None:
        self._stub = stub
        self._connection = connection

    def list(self) -> list[SessionInfo]:
        """All sessions, the least recently used first."""
        answer = self._call(self._stub.ListSessions, decode_pb2.ListSessionsRequest())
        return [session_from_proto(session) for session in answer.sessions]

    def describe(self, session_id: str) -> SessionInfo:
        """One session. Looking at it does not keep it longer."""
        request = decode_pb2.DescribeSessionRequest(session_id=session_id)
        return session_from_proto(self._call(self._stub.DescribeSession, request).session)

    def fork(self, session_id: str) -> SessionInfo:
        """Another session in the same state; `Refused` while a generation runs on it."""
        request = decode_pb2.ForkSessionRequest(session_id=session_id)
        return session_from_proto(self._call(self._stub.ForkSession, request).session)

    def release(self, session_id: str) -> None:
        """Give its memory back; `Refused` while a generation runs on it."""
        request = decode_pb2.ReleaseSessionRequest(session_id=session_id)
        self._call(self._stub.ReleaseSession, request)

    def _call(self, method: Any, request: Any) -> Any:
        try:
            return method(request, timeout=_TIMEOUT_SECONDS, metadata=self._connection.metadata())
        except grpc.RpcError as rpc_error:
            raise from_rpc_error(rpc_error) from rpc_error


class AsyncSessionCalls:
    """As `SessionCalls`, to be awaited."""

    def __init__(self, stub: decode_pb2_grpc.DecodeServiceStub, connection: Connection) -> None:
        self._stub: Any = stub
        self._connection = connection

    async def list(self) -> list[SessionInfo]:
        answer = await self._call(self._stub.ListSessions, decode_pb2.ListSessionsRequest())
        return [session_from_proto(session) for session in answer.sessions]

    async def describe(self, session_id: str) -> SessionInfo:
        request = decode_pb2.DescribeSessionRequest(session_id=session_id)
        return session_from_proto((await self._call(self._stub.DescribeSession, request)).session)

    async def fork(self, session_id: str) -> SessionInfo:
        request = decode_pb2.ForkSessionRequest(session_id=session_id)
        return session_from_proto((await self._call(self._stub.ForkSession, request)).session)

    async def release(self, session_id: str) -> None:
        request = decode_pb2.ReleaseSessionRequest(session_id=session_id)
        await self._call(self._stub.ReleaseSession, request)

    async def _call(self, method: Any, request: Any) -> Any:
        metadata = self._connection.metadata()
        try:
            return await method(request, timeout=_TIMEOUT_SECONDS, metadata=metadata)
        except grpc.RpcError as rpc_error:
            raise from_rpc_error(rpc_error) from rpc_error

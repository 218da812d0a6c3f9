"""The requests of DecodeService that name a session, for routing to the decode that has it."""

from __future__ import annotations

from typing import Any

from headwise.errors import HeadwiseError, NotFound
from headwise.v1 import decode_pb2
from services.runtime.replicas.routing import Route, Routes
from services.runtime.replicas.tag import foreign_session_tag


def _foreign_tag(request: Any) -> str | None:
    return foreign_session_tag(request.session_id)


def _gone() -> HeadwiseError:
    return NotFound(
        "the replica that had this session is gone: begin a new session with the whole "
        "conversation",
        "SESSION_REPLICA_GONE",
        {"field": "session_id"},
    )


_ROUTE = Route(_foreign_tag, _gone)
SESSION_ROUTES: Routes = {
    decode_pb2.GenerateRequest: _ROUTE,
    decode_pb2.ForkSessionRequest: _ROUTE,
    decode_pb2.DescribeSessionRequest: _ROUTE,
    decode_pb2.ReleaseSessionRequest: _ROUTE,
}

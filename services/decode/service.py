"""The servicer of DecodeService: one method for each RPC."""

from __future__ import annotations

from typing import Any

import grpc

from headwise.v1 import decode_pb2, decode_pb2_grpc
from services.decode.answers import AnswerRunner
from services.decode.generate import GenerateCall
from services.decode.messages import session_to_proto
from services.decode.options import DecodeOptions
from services.decode.origin_lookup import OriginLookup
from services.decode.parts import DecodeParts
from services.decode.request_reader import RequestReader
from services.runtime.security.identity import current_allowance, current_tenant
from services.runtime.serving.convert import describe_model, describe_versions

_Context = grpc.aio.ServicerContext[Any, Any]


class DecodeServicer(decode_pb2_grpc.DecodeServiceServicer):
    """Implements headwise.v1.DecodeService on the event loop; the engine has its own thread."""

    def __init__(self, parts: DecodeParts, options: DecodeOptions) -> None:
        self._parts = parts
        self._options = options
        self._origins = OriginLookup(
            parts.sessions, parts.resident_caches, parts.arrivals, parts.source.stored_caches
        )
        self._reader = RequestReader(parts.served, parts.limits, parts.pool)
        self._runner = AnswerRunner(
            parts.engine,
            parts.loop_calls,
            parts.arbiter,
            parts.expectation,
            parts.served.tokenizer,
        )

    async def Generate(  # noqa: N802
        self, request: decode_pb2.GenerateRequest, context: _Context
    ) -> None:
        await GenerateCall(
            request,
            context,
            origins=self._origins,
            reader=self._reader,
            arbiter=self._parts.arbiter,
            sessions=self._parts.sessions,
            runner=self._runner,
            stall_seconds=self._options.server.reader_stall_seconds,
        ).run()

    async def Describe(  # noqa: N802
        self, request: decode_pb2.DecodeServiceDescribeRequest, context: _Context
    ) -> decode_pb2.DecodeServiceDescribeResponse:
        prefill = await self._parts.source.describe()
        limits, options = self._parts.limits, self._options
        return decode_pb2.DecodeServiceDescribeResponse(
            model=describe_model(self._parts.served),
            policies=prefill.policies,
            default_policy=prefill.default_policy,
            limits=decode_pb2.DecodeLimits(
                max_sequence_tokens=limits.max_sequence_tokens,
                default_max_tokens=limits.default_max_tokens,
                max_sequences=limits.max_sequences,
                pool_bytes=self._parts.pool.capacity_bytes,
                max_queued=options.max_queued,
                max_sessions=options.max_sessions,
                max_session_seconds=limits.max_session_seconds,
                max_contexts=options.max_resident_caches,
                codecs=limits.codecs,
            ),
            versions=describe_versions(),
        )

    async def ForkSession(  # noqa: N802
        self, request: decode_pb2.ForkSessionRequest, context: _Context
    ) -> decode_pb2.ForkSessionResponse:
        sessions, tenant = self._parts.sessions, current_tenant()
        fork_bytes = sessions.describe(request.session_id, tenant).pages.resident_bytes
        held, allowance = sessions.holdings(tenant), current_allowance()
        with (
            allowance.hold("bytes", held.nbytes, fork_bytes),
            allowance.hold("sessions", held.count, 1),
        ):
            session = sessions.fork(request.session_id, tenant)
        return decode_pb2.ForkSessionResponse(session=session_to_proto(session))

    async def ListSessions(  # noqa: N802
        self, request: decode_pb2.ListSessionsRequest, context: _Context
    ) -> decode_pb2.ListSessionsResponse:
        sessions = self._parts.sessions.all(current_tenant())
        return decode_pb2.ListSessionsResponse(sessions=map(session_to_proto, sessions))

    async def DescribeSession(  # noqa: N802
        self, request: decode_pb2.DescribeSessionRequest, context: _Context
    ) -> decode_pb2.DescribeSessionResponse:
        session = self._parts.sessions.describe(request.session_id, current_tenant())
        return decode_pb2.DescribeSessionResponse(session=session_to_proto(session))

    async def ReleaseSession(  # noqa: N802
        self, request: decode_pb2.ReleaseSessionRequest, context: _Context
    ) -> decode_pb2.ReleaseSessionResponse:
        self._parts.sessions.release(request.session_id, current_tenant())
        return decode_pb2.ReleaseSessionResponse()

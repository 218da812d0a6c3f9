"""One Generate call: read the request, wait for room, fill the cache, stream the answers."""

from __future__ import annotations

import functools
from typing import Any

import grpc

from headwise.results import Delta
from headwise.tracing import span
from headwise.v1 import decode_pb2
from kvstore.pool import SequencePages
from services.decode.answers import AnswerRunner, RunningAnswers
from services.decode.engine.sequence import Finished, Keep, RunningSequence
from services.decode.generation import GenerationSpec
from services.decode.memory.arbiter import MemoryArbiter
from services.decode.memory.sessions import Sessions
from services.decode.messages import delta_to_proto, result_to_proto
from services.decode.observations import observe_token
from services.decode.origin import OpenPages, Origin
from services.decode.origin_lookup import OriginLookup
from services.decode.report import Clock, PromptCache, TransferReport, measure
from services.decode.request_reader import RequestReader
from services.runtime.process import metrics
from services.runtime.security.identity import current_allowance, current_tenant
from services.runtime.serving.reader_limit import ReaderLimit


class GenerateCall:
    """The life of one call. When it ends, all that remains of it are the sessions it kept."""

    def __init__(
        self,
        request: decode_pb2.GenerateRequest,
        context: grpc.aio.ServicerContext[Any, Any],
        *,
        origins: OriginLookup,
        reader: RequestReader,
        arbiter: MemoryArbiter[RunningSequence],
        sessions: Sessions,
        runner: AnswerRunner,
        stall_seconds: float,
    ) -> None:
        self._request = request
        self._context = context
        self._origins = origins
        self._reader = reader
        self._arbiter = arbiter
        self._sessions = sessions
        self._runner = runner
        self._written = ReaderLimit(context, stall_seconds)
        self._clock = Clock()

    async def run(self) -> None:
        """Answer the request; raises a typed error."""
        # checked before any work is done, so that a refusal comes at once
        self._arbiter.require_place(current_tenant())
        size, allowance = self._reader.count(self._request), current_allowance()
        allowance.require_tokens(size.least_tokens)
        timeout_seconds = self._context.time_remaining()
        async with self._origins.find(self._request, timeout_seconds) as origin:
            spec = await self._reader.read(self._request, size, origin)
            held = self._sessions.holdings(current_tenant())
            with (
                allowance.hold("bytes", held.nbytes, origin.expected_bytes(spec)),
                allowance.hold("sessions", held.count, spec.new_sessions),
            ):
                allowance.take_prompt(spec.prompt_tokens)
                await self._generate(spec, origin)

    async def _generate(self, spec: GenerationSpec, origin: Origin) -> None:
        pages = await origin.open(spec, functools.partial(self._admit, spec.answers))
        try:
            report = await origin.fill(spec, pages, self._context.time_remaining())
            # measured here: the engine's thread owns the pages once the answers run
            prompt_cache = PromptCache(report, measure(pages), pages.codec)
            as_new_session = self._keep_as_new_session(spec, report)
            keep_first = origin.keep_first(spec, as_new_session)
            answers = self._runner.start(spec, pages, keep_first, as_new_session)
        except BaseException:
            pages.release()
            self._arbiter.release_answers(spec.answers, tenant=current_tenant())
            raise
        try:
            with span("answer"):
                await self._write(spec, answers, prompt_cache)
        finally:
            answers.cancel()

    async def _admit(self, answers: int, open_pages: OpenPages) -> SequencePages:
        with self._clock.queueing(), span("admit", answers=answers):
            pages = await self._arbiter.admit(
                answers, self._context.time_remaining(), open_pages, current_tenant()
            )
        metrics.STAGE_SECONDS.labels("admission").observe(self._clock.queue_seconds)
        return pages

    def _keep_as_new_session(self, spec: GenerationSpec, report: TransferReport) -> Keep | None:
        """Return what keeps an answer's cache as the request asks; None if it does not ask."""
        if not spec.keep_session_seconds:
            return None
        # the tenant is bound here: the engine's thread runs outside of any call
        return functools.partial(
            self._sessions.keep,
            report=report,
            keep_seconds=spec.keep_session_seconds,
            owner=current_tenant(),
            limits=current_allowance().limits,
        )

    async def _write(
        self, spec: GenerationSpec, answers: RunningAnswers, prompt_cache: PromptCache
    ) -> None:
        """Write the tokens of all answers as they come, and each answer's result."""
        while answers.unfinished:
            match await answers.next_event():
                case Delta() as delta:
                    current_allowance().take_answer(len(delta.token_ids))
                    observe_token(self._clock, delta.index)
                    await self._written.write(delta_to_proto(delta))
                case Finished() as finished:
                    result = result_to_proto(spec, prompt_cache, finished, self._clock)
                    await self._written.write(decode_pb2.GenerateResponse(result=result))

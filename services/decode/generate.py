"""One Generate call: check, admit, pull the cache, let the engine run it, write what comes out."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Sequence
from typing import Any

import grpc

from headwise.errors import InvalidRequest
from headwise.results import Delta
from headwise.tracing import annotate, span
from headwise.v1 import decode_pb2
from kvstore.codecs import RowCodec
from kvstore.pool import PageCount, SequencePages
from services.decode.answer import Answer
from services.decode.generation import GenerationSpec, parse_generation
from services.decode.messages import delta_to_proto, result_to_proto
from services.decode.observations import observe_cache, observe_token
from services.decode.parts import DecodeParts
from services.decode.report import Clock, Memory, Received, measure
from services.decode.sampling import Sampler
from services.decode.sequence import Event, Finished, Keep, RunningSequence
from services.decode.sessions import Session
from services.runtime import metrics
from services.runtime.convert import codec_to_proto
from services.runtime.identity import current_allowance, current_tenant


class GenerateCall:
    """The life of one call. Whatever ends it, nothing of it stays behind but a kept session."""

    def __init__(
        self,
        parts: DecodeParts,
        request: decode_pb2.GenerateRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        self._parts = parts
        self._request = request
        self._context = context
        self._clock = Clock()
        self._session: Session | None = None

    async def run(self) -> None:
        """Answer the request; raises a typed error."""
        # before any work is done: whoever is refused is refused at once
        self._parts.admission.require_place()
        if not self._request.session_id:
            return await self._generate()
        self._session = self._parts.sessions.borrow(self._request.session_id, current_tenant())
        try:
            await self._generate()
        finally:
            self._parts.sessions.give_back(self._session)

    async def _generate(self) -> None:
        parts, held = self._parts, self._session.tokens if self._session else ()
        spec = parse_generation(self._request, parts.served, parts.limits, held)
        self._require_fit(spec)
        allowance = current_allowance()
        kept = parts.sessions.held_bytes(current_tenant())
        with allowance.hold(kept, self._expected_bytes(spec)):
            allowance.take_prompt(spec.prompt_tokens)
            await self._run(spec)

    async def _run(self, spec: GenerationSpec) -> None:
        parts = self._parts
        with self._clock.queueing(), span("admit", answers=spec.answers):
            pages = await parts.admission.admit(
                spec.answers, self._context.time_remaining(), functools.partial(self._open, spec)
            )
        metrics.STAGE_SECONDS.labels("admission").observe(self._clock.queue_seconds)
        try:
            received = await self._fill(spec, pages)
            events: asyncio.Queue[Event] = asyncio.Queue()
            sequence = self._sequence(spec, pages, received, events)
            codec, prompt_memory = pages.codec, measure(pages)
        except BaseException:
            pages.release()
            parts.admission.leave(spec.answers)
            raise
        parts.engine.submit(sequence)
        answers = (sequence, *sequence.forks)
        try:
            with span("answer"):
                await self._stream(spec, events, received, prompt_memory, codec)
        finally:
            for answer in answers:
                answer.cancel()

    def _require_fit(self, spec: GenerationSpec) -> None:
        """Raise `InvalidRequest` for what would not fit an empty pool, every head keeping all."""
        pool = self._parts.pool
        codec = self._session.pages.codec if self._session else spec.codec
        needed = pool.bound(spec.final_tokens, codec)
        if needed.rows > pool.pages or needed.marks > pool.mark_pages:
            raise InvalidRequest(
                f"{spec.final_tokens} tokens need {needed.rows} pages, the pool has {pool.pages}",
                "SEQUENCE_TOO_LONG",
                {"field": "max_tokens"},
            )

    def _open(self, spec: GenerationSpec) -> SequencePages:
        """Pages for the sequence: a fork of its session, or new ones for what is expected."""
        if self._session is not None:
            return self._session.pages.fork()
        return self._parts.pool.open(spec.prompt_tokens - 1, self._expected(spec), spec.codec)

    def _expected(self, spec: GenerationSpec) -> PageCount:
        """Pages that prompt and answer will probably take."""
        prompt, most = spec.prompt_tokens - 1, spec.ends.max_tokens
        return self._parts.expectation.pages(spec.policy, prompt, most, spec.codec)

    def _expected_bytes(self, spec: GenerationSpec) -> int:
        """Of a turn none: its session, which is counted, shares its pages."""
        if self._session is not None:
            return 0
        expected, storage = self._expected(spec), self._parts.pool.storage
        return expected.rows * storage.row_page_bytes + expected.marks * storage.mark_page_bytes

    async def _fill(self, spec: GenerationSpec, pages: SequencePages) -> Received:
        """The cache of all tokens but the last, which the engine feeds."""
        parts, prompt = self._parts, spec.token_ids[:-1]
        if self._session is not None:
            return self._session.received
        if not prompt:
            return Received()
        with span("pull", calls=True, prompt_tokens=len(prompt)):
            received = await parts.source.pull(
                prompt, spec.policy, pages, self._context.time_remaining(), parts.admission.claim
            )
            annotate({"headwise.wire_bytes": received.wire_bytes})
        used = pages.reservation.used
        parts.expectation.saw_prompt(spec.policy, len(prompt), used, spec.codec)
        bound = pages.pages_bound(spec.final_tokens)
        pages.reservation.keep(PageCount(bound.rows - used.rows, bound.marks - used.marks))
        # what was promised beyond that may be what the next in line waits for
        parts.admission.advance()
        observe_cache(received, pages)
        return received

    def _sequence(
        self,
        spec: GenerationSpec,
        pages: SequencePages,
        received: Received,
        events: asyncio.Queue[Event],
    ) -> RunningSequence:
        """The first answer, with the others as its forks."""
        loop, began = asyncio.get_running_loop(), time.monotonic()

        def tell(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        def released() -> None:
            loop.call_soon_threadsafe(self._leave, began)

        def answer(
            index: int, pages: SequencePages | None, forks: tuple[RunningSequence, ...]
        ) -> RunningSequence:
            stream = self._parts.served.tokenizer.stream(spec.token_ids)
            device = self._parts.served.model.device
            return RunningSequence(
                pages=pages,
                suffix=spec.token_ids[spec.session_tokens - 1 if spec.session_tokens else -1 :],
                sampler=Sampler(spec.sampling.for_answer(index), spec.token_ids, device),
                answer=Answer(spec.ends, stream, index),
                tell=tell,
                on_release=released,
                keep=self._keep(spec, received, index),
                forks=forks,
            )

        return answer(0, pages, tuple(answer(n, None, ()) for n in range(1, spec.answers)))

    def _leave(self, since: float) -> None:
        self._parts.admission.leave(stayed_seconds=time.monotonic() - since)

    def _keep(self, spec: GenerationSpec, received: Received, index: int) -> Keep | None:
        """What becomes of a finished answer's cache; called by the engine's thread."""
        sessions, session = self._parts.sessions, self._session
        seconds = spec.keep_session_seconds
        if session is not None and index == 0:
            seconds, turn = seconds or session.keep_seconds, session.turn

            def replace(pages: SequencePages, tokens: Sequence[int]) -> str:
                return sessions.replace(session, turn, pages, tokens, seconds)

            return replace
        if not seconds:
            return None
        # the engine's thread knows of no call
        owner = current_tenant()

        def keep(pages: SequencePages, tokens: Sequence[int]) -> str:
            return sessions.keep(pages, tokens, received, seconds, owner)

        return keep

    async def _stream(
        self,
        spec: GenerationSpec,
        events: asyncio.Queue[Event],
        received: Received,
        prompt_memory: Memory,
        codec: RowCodec,
    ) -> None:
        left = spec.answers
        while left:
            match await events.get():
                case Delta() as delta:
                    current_allowance().take_answer(len(delta.token_ids))
                    observe_token(self._clock, delta.index)
                    await self._context.write(delta_to_proto(delta))
                case Finished() as finished:
                    left -= 1
                    self._parts.expectation.saw_answer(finished.tokens)
                    result = result_to_proto(spec, received, prompt_memory, finished, self._clock)
                    result.codec.CopyFrom(codec_to_proto(codec))
                    await self._context.write(decode_pb2.GenerateResponse(result=result))
                case error:
                    raise error

"""One Generate call: check, admit, pull the cache, let the engine run it, write what comes out."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc

from headwise.errors import InvalidRequest
from headwise.results import Delta
from headwise.tracing import annotate, span
from headwise.v1 import cache_pb2, decode_pb2, store_pb2
from kvstore.pool import PageCount, SequencePages
from kvstore.row_codecs import RowCodec
from services.decode.engine.answer import Answer
from services.decode.engine.sampling import Sampler
from services.decode.engine.sequence import Event, Finished, Keep, RunningSequence
from services.decode.generation import GenerationSpec, parse_generation
from services.decode.memory.sessions import Session
from services.decode.messages import delta_to_proto, result_to_proto
from services.decode.observations import observe_cache, observe_token
from services.decode.parts import DecodeParts
from services.decode.report import Clock, Memory, TransferReport, measure
from services.runtime.process import metrics
from services.runtime.security.identity import current_allowance, current_namespace, current_tenant
from services.runtime.serving.convert import codec_to_proto, recorded_codec
from services.runtime.serving.unknown_fields import require_known


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
        self._namespace = current_namespace()
        self._session: Session | None = None
        # a stored cache that the prompt follows, and what of it came for this call
        self._stored: cache_pb2.StoredCache | None = None
        self._stored_received = TransferReport()

    async def run(self) -> None:
        """Answer the request; raises a typed error."""
        # before any work is done: whoever is refused is refused at once
        self._parts.arbiter.require_place()
        require_known(self._request)
        if self._request.cache_handle:
            self._stored = await self._describe(self._request.cache_handle)
        if not self._request.session_id:
            return await self._generate()
        self._session = self._parts.sessions.borrow(self._request.session_id, current_tenant())
        try:
            await self._generate()
        finally:
            self._parts.sessions.give_back(self._session)

    async def _generate(self) -> None:
        parts, spec = self._parts, self._spec()
        self._require_fit(spec)
        allowance = current_allowance()
        kept = parts.sessions.held_bytes(current_tenant())
        with allowance.hold(kept, self._expected_bytes(spec)):
            allowance.take_prompt(spec.prompt_tokens)
            await self._run(spec)

    async def _run(self, spec: GenerationSpec) -> None:
        parts = self._parts
        if self._stored is None:
            pages = await self._admit(spec, functools.partial(self._open, spec))
        else:
            pages = await self._fork_context(spec, self._stored)
        try:
            received = await self._fill(spec, pages)
            events: asyncio.Queue[Event] = asyncio.Queue()
            sequence = self._sequence(spec, pages, received, events)
            codec, prompt_memory = pages.codec, measure(pages)
        except BaseException:
            pages.release()
            parts.arbiter.leave(spec.answers)
            raise
        parts.engine.submit(sequence)
        answers = (sequence, *sequence.forks)
        try:
            with span("answer"):
                await self._stream(spec, events, received, prompt_memory, codec)
        finally:
            for answer in answers:
                answer.cancel()

    def _spec(self) -> GenerationSpec:
        held: Sequence[int] = ()
        context_tokens = self._stored.tokens if self._stored else 0
        if self._session is not None:
            held, context_tokens = self._session.tokens, self._session.received.context_tokens
        parts = self._parts
        return parse_generation(self._request, parts.served, parts.limits, held, context_tokens)

    async def _describe(self, handle: str) -> cache_pb2.StoredCache:
        """What the handle stands for, as long as it stands for something."""
        if self._request.session_id:
            message = "cache_handle: a session cannot begin again on a stored cache"
            raise InvalidRequest(message, "HANDLE_ON_SESSION", {"field": "cache_handle"})
        request = store_pb2.DescribeCacheRequest(handle=handle)
        answer = await self._parts.source.stored_caches.describe(
            request, self._namespace, self._context.time_remaining()
        )
        return answer.cache

    async def _admit(
        self, spec: GenerationSpec, open_pages: Callable[[], SequencePages]
    ) -> SequencePages:
        with self._clock.queueing(), span("admit", answers=spec.answers):
            pages = await self._parts.arbiter.admit(
                spec.answers, self._context.time_remaining(), open_pages
            )
        metrics.STAGE_SECONDS.labels("admission").observe(self._clock.queue_seconds)
        return pages

    async def _fork_context(
        self, spec: GenerationSpec, stored: cache_pb2.StoredCache
    ) -> SequencePages:
        """Pages that begin as the stored cache's, which is fetched if the pool has not got it."""
        parts, handle = self._parts, self._request.cache_handle

        def load() -> Awaitable[tuple[SequencePages, TransferReport]]:
            return parts.loader.load(handle, stored, self._namespace)

        borrowed = parts.resident_caches.borrow((self._namespace, stored.key), stored, load)
        async with borrowed as (context, fresh):
            received = context.received
            self._stored_received = received if fresh else received.without_transfer_cost()
            return await self._admit(spec, context.pages.fork)

    def _require_fit(self, spec: GenerationSpec) -> None:
        """Raise `InvalidRequest` for what would not fit an empty pool, every head keeping all."""
        pool = self._parts.pool
        codec = self._codec(spec)
        needed = pool.bound(spec.final_tokens, codec)
        if needed.rows > pool.pages or needed.marks > pool.metadata_pages:
            raise InvalidRequest(
                f"{spec.final_tokens} tokens need {needed.rows} pages, the pool has {pool.pages}",
                "SEQUENCE_TOO_LONG",
                {"field": "max_tokens"},
            )

    def _codec(self, spec: GenerationSpec) -> RowCodec:
        """Of the session or the stored cache it goes on from, else the one asked for."""
        if self._session is not None:
            return self._session.pages.codec
        return spec.codec if self._stored is None else recorded_codec(self._stored.codec)

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
        return expected.rows * storage.row_page_bytes + expected.marks * storage.metadata_page_bytes

    async def _fill(self, spec: GenerationSpec, pages: SequencePages) -> TransferReport:
        """The cache of all tokens but the last, which the engine feeds."""
        parts, prompt = self._parts, spec.token_ids[:-1]
        if self._session is not None:
            return self._session.received
        if self._stored is not None:
            return self._stored_received
        if not prompt:
            return TransferReport()
        with span("pull", calls=True, prompt_tokens=len(prompt)):
            received = await parts.source.pull(
                prompt,
                spec.policy,
                pages,
                self._context.time_remaining(),
                self._namespace,
                parts.intake,
            )
            annotate({"headwise.wire_bytes": received.wire_bytes})
        used = pages.reservation.used
        parts.expectation.saw_prompt(spec.policy, len(prompt), used, spec.codec)
        bound = pages.pages_bound(spec.final_tokens)
        pages.reservation.keep(PageCount(bound.rows - used.rows, bound.marks - used.marks))
        # what was promised beyond that may be what the next in line waits for
        parts.arbiter.advance()
        observe_cache(received, pages)
        return received

    def _sequence(
        self,
        spec: GenerationSpec,
        pages: SequencePages,
        received: TransferReport,
        events: asyncio.Queue[Event],
    ) -> RunningSequence:
        """The first answer, with the others as its forks."""
        doorbell, began = self._parts.doorbell, time.monotonic()

        def tell(event: Event) -> None:
            doorbell.call(lambda: events.put_nowait(event))

        def released() -> None:
            doorbell.call(lambda: self._leave(began))

        def answer(
            index: int, pages: SequencePages | None, forks: tuple[RunningSequence, ...]
        ) -> RunningSequence:
            stream = self._parts.served.tokenizer.stream(spec.token_ids)
            return RunningSequence(
                pages=pages,
                suffix=spec.suffix,
                sampler=Sampler(spec.sampling.for_answer(index), spec.token_ids),
                answer=Answer(spec.ends, stream, index),
                tell=tell,
                on_release=released,
                keep=self._keep(spec, received, index),
                forks=forks,
            )

        return answer(0, pages, tuple(answer(n, None, ()) for n in range(1, spec.answers)))

    def _leave(self, since: float) -> None:
        self._parts.arbiter.leave(stayed_seconds=time.monotonic() - since)

    def _keep(self, spec: GenerationSpec, received: TransferReport, index: int) -> Keep | None:
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
        received: TransferReport,
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

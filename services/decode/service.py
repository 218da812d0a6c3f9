"""The servicer: check, admit, pull the cache, let the engine run it, write what comes out."""

from __future__ import annotations

import functools
from typing import Any

import grpc

from headwise.results import Delta, FinishReason
from headwise.v1 import decode_pb2, decode_pb2_grpc
from kvstore.pool import PagePool, SequencePages
from services.decode.admission import Admission
from services.decode.answer import Answer
from services.decode.engine import Engine
from services.decode.gauges import watch_memory
from services.decode.generation import GenerationSpec, parse_generation
from services.decode.options import DecodeOptions
from services.decode.report import (
    Clock,
    Memory,
    Received,
    heads_to_proto,
    measure,
    memory_to_proto,
)
from services.decode.sampling import Sampler
from services.decode.sequence import Finished, RunningSequence
from services.decode.source import PrefillSource
from services.runtime import metrics
from services.runtime.convert import describe_model, describe_versions
from services.runtime.model import ServedModel

_FINISH = {
    FinishReason.STOP: decode_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: decode_pb2.FINISH_REASON_LENGTH,
}


class DecodeServicer(decode_pb2_grpc.DecodeServiceServicer):
    """Implements headwise.v1.DecodeService on the event loop; the engine has its own thread."""

    def __init__(
        self,
        served: ServedModel,
        options: DecodeOptions,
        pool: PagePool,
        source: PrefillSource,
        engine: Engine,
    ) -> None:
        self._served = served
        self._options = options
        self._pool = pool
        self._source = source
        self._engine = engine
        self._max_sequence_tokens = min(
            options.max_sequence_tokens or served.context_tokens, served.context_tokens
        )
        self._admission = Admission(pool, served.shapes, max_sequences=options.max_sequences)
        watch_memory(pool, self._admission)

    async def Generate(  # noqa: N802
        self,
        request: decode_pb2.GenerateRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        clock = Clock()
        spec = parse_generation(
            request,
            self._served,
            max_sequence_tokens=self._max_sequence_tokens,
            default_max_tokens=self._options.default_max_tokens,
        )
        pages = self._admission.admit(spec)
        try:
            received = await self._fill(spec, pages, context)
            sequence = self._sequence(spec, pages)
        except BaseException:
            pages.release()
            self._admission.leave(pages)
            raise
        prompt_memory = measure(pages)
        self._engine.submit(sequence)
        try:
            await self._stream(spec, sequence, received, prompt_memory, clock, context)
        finally:
            sequence.cancel()

    async def _fill(
        self,
        spec: GenerationSpec,
        pages: SequencePages,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> Received:
        """The cache of all tokens but the last, which the engine feeds."""
        prompt = spec.token_ids[:-1]
        if not prompt:
            return Received()
        received = await self._source.pull(prompt, spec.policy, pages, context.time_remaining())
        pages.reservation.shrink(pages.pages_bound(spec.final_tokens))
        for head in received.heads:
            metrics.HEADS_RECEIVED.labels(head.head_class).inc()
            metrics.ROWS_RECEIVED.labels(head.head_class).inc(head.rows)
        metrics.RECOVERED_MASS.observe(received.recovered_mass)
        metrics.STAGE_SECONDS.labels("receive").observe(received.receive_seconds)
        return received

    def _sequence(self, spec: GenerationSpec, pages: SequencePages) -> RunningSequence:
        return RunningSequence(
            pages=pages,
            next_token=spec.token_ids[-1],
            sampler=Sampler(spec.sampling, spec.token_ids, self._served.model.device),
            answer=Answer(spec.ends, self._served.tokenizer.stream(spec.token_ids)),
            on_release=functools.partial(self._admission.leave, pages),
        )

    async def _stream(
        self,
        spec: GenerationSpec,
        sequence: RunningSequence,
        received: Received,
        prompt_memory: Memory,
        clock: Clock,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        made = 0
        while True:
            match await sequence.events.get():
                case Delta() as delta:
                    made += len(delta.token_ids)
                    _observe(clock)
                    await context.write(_delta(delta))
                case Finished() as finished:
                    result = _result(spec, received, prompt_memory, finished, made, clock)
                    await context.write(decode_pb2.GenerateResponse(result=result))
                    return
                case error:
                    raise error

    async def Describe(  # noqa: N802
        self,
        request: decode_pb2.DecodeServiceDescribeRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> decode_pb2.DecodeServiceDescribeResponse:
        prefill = await self._source.describe()
        return decode_pb2.DecodeServiceDescribeResponse(
            model=describe_model(self._served),
            policies=prefill.policies,
            default_policy=prefill.default_policy,
            limits=decode_pb2.DecodeLimits(
                max_sequence_tokens=self._max_sequence_tokens,
                default_max_tokens=self._options.default_max_tokens,
                max_sequences=self._options.max_sequences,
                pool_bytes=self._pool.capacity_bytes,
            ),
            versions=describe_versions(),
        )


def _observe(clock: Clock) -> None:
    since = clock.token()
    if since is None:
        metrics.TIME_TO_FIRST_TOKEN.observe(clock.first_token_seconds)
    else:
        metrics.TIME_PER_OUTPUT_TOKEN.observe(since)


def _delta(delta: Delta) -> decode_pb2.GenerateResponse:
    return decode_pb2.GenerateResponse(
        delta=decode_pb2.Delta(text=delta.text, token_ids=delta.token_ids)
    )


def _result(
    spec: GenerationSpec,
    received: Received,
    prompt_memory: Memory,
    finished: Finished,
    made: int,
    clock: Clock,
) -> decode_pb2.Result:
    return decode_pb2.Result(
        finish_reason=_FINISH[finished.reason],
        usage=decode_pb2.Usage(prompt_tokens=len(spec.token_ids), completion_tokens=made),
        prompt_memory=memory_to_proto(prompt_memory, received, received.wire_bytes),
        final_memory=memory_to_proto(finished.memory, received, 0),
        timings=clock.timings(received),
        heads=heads_to_proto(received) if spec.report_heads else [],
        policy=received.policy,
    )

"""Converts answers, results and sessions to protobuf."""

from __future__ import annotations

from headwise.results import Delta, FinishReason
from headwise.v1 import decode_pb2
from services.decode.engine.sequence import Finished
from services.decode.generation import GenerationSpec
from services.decode.memory.sessions import Session
from services.decode.report import (
    Clock,
    PromptCache,
    heads_to_proto,
    measure,
    memory_to_proto,
)
from services.runtime.serving.convert import codec_to_proto

_FINISH = {
    FinishReason.STOP: decode_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: decode_pb2.FINISH_REASON_LENGTH,
}


def delta_to_proto(delta: Delta) -> decode_pb2.GenerateResponse:
    logprobs = [
        decode_pb2.TokenLogprobs(
            logprob=token.logprob,
            top=[decode_pb2.TopLogprob(token_id=t, logprob=p) for t, p in token.top],
        )
        for token in delta.logprobs
    ]
    return decode_pb2.GenerateResponse(
        delta=decode_pb2.Delta(
            text=delta.text, token_ids=delta.token_ids, index=delta.index, logprobs=logprobs
        )
    )


def result_to_proto(
    spec: GenerationSpec,
    prompt_cache: PromptCache,
    finished: Finished,
    clock: Clock,
) -> decode_pb2.Result:
    report = prompt_cache.report
    return decode_pb2.Result(
        finish_reason=_FINISH[finished.reason],
        usage=decode_pb2.Usage(
            prompt_tokens=spec.prompt_tokens,
            completion_tokens=finished.tokens,
            session_tokens=spec.session_tokens,
            context_tokens=spec.context_tokens,
        ),
        prompt_memory=memory_to_proto(prompt_cache.memory, report, report.wire_bytes),
        final_memory=memory_to_proto(finished.memory, report, 0),
        timings=clock.timings(report, finished.index),
        heads=heads_to_proto(report) if spec.report_heads else [],
        policy=report.policy,
        codec=codec_to_proto(prompt_cache.codec),
        index=finished.index,
        session_id=finished.session_id,
    )


def session_to_proto(session: Session) -> decode_pb2.Session:
    return decode_pb2.Session(
        session_id=session.session_id,
        tokens=session.report.context_tokens + len(session.tokens),
        expires_in_seconds=session.expires_in_seconds,
        busy=session.busy,
        memory=memory_to_proto(measure(session.pages), session.report, 0),
        policy=session.report.policy,
    )

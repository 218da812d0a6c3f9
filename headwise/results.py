"""What a caller gets back, as plain values."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping

from google.protobuf.json_format import MessageToDict

from headwise.v1 import cache_pb2, decode_pb2


class FinishReason(enum.StrEnum):
    """Why a generation ended."""

    STOP = "stop"
    LENGTH = "length"
    # said by a server that is newer than this client
    OTHER = "other"


_FINISH_REASONS = {
    decode_pb2.FINISH_REASON_STOP: FinishReason.STOP,
    decode_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
}


@dataclasses.dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """How likely a token was, and the likeliest tokens with theirs; natural logarithms."""

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Delta:
    """What has been generated since the last delta; `index` says of which answer.

    `logprobs` has an entry a token if they were asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    index: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and made; the end token counts as made. On a session, those of this turn.

    `context_tokens` are of the stored cache that prompt, or session, followed.
    """

    prompt_tokens: int
    completion_tokens: int
    session_tokens: int = 0
    context_tokens: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class MemoryReport:
    """What a cache occupies, measured; bytes. `recovered_mass` is 0 where nothing was profiled."""

    dense_bytes: int
    resident_bytes: int
    wire_bytes: int
    rows_kept: int
    rows_dense: int
    recovered_mass: float
    head_classes: Mapping[str, int]

    @property
    def rows_kept_ratio(self) -> float:
        return self.rows_kept / self.rows_dense if self.rows_dense else 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Timings:
    """Seconds by stage."""

    queue_seconds: float
    prefill_seconds: float
    profile_seconds: float
    compact_seconds: float
    ship_seconds: float
    receive_seconds: float
    first_token_seconds: float
    decode_seconds: float
    total_seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class HeadReport:
    """What one KV head kept of the prompt."""

    layer: int
    head: int
    head_class: str
    rows: int
    recovered_mass: float


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """How an answer ended, and what it took.

    `session_id` is what a next turn may go on from; empty unless it was to be kept. `codec` is how
    the rows are stored, `int8`, or `int8/int4` for keys and values.
    """

    finish_reason: FinishReason
    usage: Usage
    prompt_memory: MemoryReport
    final_memory: MemoryReport
    timings: Timings
    policy: str
    policy_parameters: Mapping[str, object]
    heads: tuple[HeadReport, ...] = ()
    index: int = 0
    session_id: str = ""
    codec: str = "model"


@dataclasses.dataclass(frozen=True, slots=True)
class SessionInfo:
    """A generation that can be gone on from. `expires_in_seconds` is 0 while it is busy."""

    session_id: str
    tokens: int
    expires_in_seconds: float
    busy: bool
    memory: MemoryReport
    policy: str


@dataclasses.dataclass(frozen=True, slots=True)
class StoredCache:
    """A cache that is kept, or that rests in a store.

    `handle` names its lease, and is empty where there is none; `key` is the same for all caches of
    this tenant that may stand in for each other. Either can be a `cache_handle`.
    """

    handle: str
    key: str
    tokens: int
    cache_bytes: int
    expires_in_seconds: float
    policy: str
    codec: str = "model"


def delta_from_proto(delta: decode_pb2.Delta) -> Delta:
    logprobs = tuple(
        TokenLogprobs(one.logprob, tuple((top.token_id, top.logprob) for top in one.top))
        for one in delta.logprobs
    )
    return Delta(delta.text, tuple(delta.token_ids), delta.index, logprobs)


def stored_from_proto(cache: cache_pb2.StoredCache) -> StoredCache:
    return StoredCache(
        handle=cache.handle,
        key=cache.key,
        tokens=cache.tokens,
        cache_bytes=cache.cache_bytes,
        expires_in_seconds=cache.expires_in_seconds,
        policy=cache.policy.name,
        codec=_codec(cache.codec),
    )


def session_from_proto(session: decode_pb2.Session) -> SessionInfo:
    return SessionInfo(
        session_id=session.session_id,
        tokens=session.tokens,
        expires_in_seconds=session.expires_in_seconds,
        busy=session.busy,
        memory=_memory(session.memory),
        policy=session.policy.name,
    )


def result_from_proto(result: decode_pb2.Result) -> Result:
    return Result(
        finish_reason=_FINISH_REASONS.get(result.finish_reason, FinishReason.OTHER),
        usage=Usage(*(getattr(result.usage, f.name) for f in dataclasses.fields(Usage))),
        prompt_memory=_memory(result.prompt_memory),
        final_memory=_memory(result.final_memory),
        timings=Timings(*(getattr(result.timings, f.name) for f in dataclasses.fields(Timings))),
        policy=result.policy.name,
        policy_parameters=MessageToDict(result.policy.parameters),
        heads=tuple(
            HeadReport(h.layer, h.head, h.head_class, h.rows, h.recovered_mass)
            for h in result.heads
        ),
        index=result.index,
        session_id=result.session_id,
        codec=_codec(result.codec),
    )


def _codec(codec: cache_pb2.RowCodec) -> str:
    keys = codec.keys or "model"
    return f"{keys}/{codec.values}" if codec.values not in ("", keys) else keys


def _memory(report: decode_pb2.MemoryReport) -> MemoryReport:
    return MemoryReport(
        dense_bytes=report.dense_bytes,
        resident_bytes=report.resident_bytes,
        wire_bytes=report.wire_bytes,
        rows_kept=report.rows_kept,
        rows_dense=report.rows_dense,
        recovered_mass=report.recovered_mass,
        head_classes={c.head_class: c.heads for c in report.head_classes},
    )

"""Results of calls, as plain values."""

from __future__ import annotations

import dataclasses
import enum
import warnings
from collections.abc import Mapping

from google.protobuf.json_format import MessageToDict

from headwise.v1 import cache_pb2, decode_pb2


class FinishReason(enum.StrEnum):
    """The reason why an answer ended."""

    STOP = "stop"
    LENGTH = "length"
    # a reason that a newer server knows and this client does not
    OTHER = "other"


_RECOVERED_MASS = "recovered_mass is called attention_coverage"
_FINISH_REASONS = {
    decode_pb2.FINISH_REASON_STOP: FinishReason.STOP,
    decode_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
}


@dataclasses.dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probability of a token, and `(token id, log-probability)` of the likeliest tokens."""

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Delta:
    """Text and tokens generated since the last delta of answer `index`.

    `logprobs` has one entry per token if log-probabilities were requested.
    """

    text: str
    token_ids: tuple[int, ...]
    index: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
    """Counts of tokens read and generated; the end token counts as generated.

    With a session, `prompt_tokens` counts this turn, `session_tokens` what the session held before.
    `context_tokens`: tokens of the stored cache that the prompt, or the session, followed.
    """

    prompt_tokens: int
    completion_tokens: int
    session_tokens: int = 0
    context_tokens: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class MemoryReport:
    """Measured memory of a cache, in bytes.

    `attention_coverage`: the share of attention probability on the kept rows, mean over all KV
    heads; 0 if nothing was profiled.
    """

    dense_bytes: int
    resident_bytes: int
    wire_bytes: int
    rows_kept: int
    rows_dense: int
    attention_coverage: float
    head_classes: Mapping[str, int]

    @property
    def rows_kept_ratio(self) -> float:
        """Rows kept, as a share of a dense cache's, in which sliding layers hold their window."""
        return self.rows_kept / self.rows_dense if self.rows_dense else 1.0

    @property
    def recovered_mass(self) -> float:
        """The earlier name of `attention_coverage`."""
        warnings.warn(_RECOVERED_MASS, DeprecationWarning, stacklevel=2)
        return self.attention_coverage


@dataclasses.dataclass(frozen=True, slots=True)
class Timings:
    """Seconds per stage of a generation."""

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
    """Rows of the prompt that one KV head kept, and their attention coverage."""

    layer: int
    head: int
    head_class: str
    rows: int
    attention_coverage: float

    @property
    def recovered_mass(self) -> float:
        """The earlier name of `attention_coverage`."""
        warnings.warn(_RECOVERED_MASS, DeprecationWarning, stacklevel=2)
        return self.attention_coverage


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """The end of an answer, with the memory and time that it took.

    `session_id`: the session that a next turn can continue; empty unless one was requested.
    `codec`: the codec of the rows, `int8`, or `int8/int4` for keys and values. `text`: the whole
    answer.
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
    text: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session: a generation that can be continued.

    `expires_in_seconds` is 0 while a generation runs on the session (`busy`).
    """

    session_id: str
    tokens: int
    expires_in_seconds: float
    busy: bool
    memory: MemoryReport
    policy: str


@dataclasses.dataclass(frozen=True, slots=True)
class StoredCache:
    """A stored cache: kept under a lease, or found in a tier.

    `handle` names the lease and is empty if there is none. `key` is equal for all caches of this
    tenant that can replace each other. Both are accepted as `cache_handle`.
    """

    handle: str
    key: str
    tokens: int
    cache_bytes: int
    expires_in_seconds: float
    policy: str
    codec: str = "model"


def delta_from_proto(delta: decode_pb2.Delta) -> Delta:
    """Convert a message of the stream."""
    logprobs = tuple(
        TokenLogprobs(entry.logprob, tuple((top.token_id, top.logprob) for top in entry.top))
        for entry in delta.logprobs
    )
    return Delta(delta.text, tuple(delta.token_ids), delta.index, logprobs)


def stored_from_proto(cache: cache_pb2.StoredCache) -> StoredCache:
    """Convert the description of a stored cache."""
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
    """Convert the description of a session."""
    return SessionInfo(
        session_id=session.session_id,
        tokens=session.tokens,
        expires_in_seconds=session.expires_in_seconds,
        busy=session.busy,
        memory=_memory(session.memory),
        policy=session.policy.name,
    )


class Answers:
    """Texts and results of one call's answers, as its messages arrive."""

    def __init__(self) -> None:
        self._texts: dict[int, list[str]] = {}
        self._results: dict[int, Result] = {}

    def take(self, response: decode_pb2.GenerateResponse) -> Delta | None:
        """Take in a message; returns its delta. Parts that a newer client knows are passed over."""
        match response.WhichOneof("part"):
            case "result":
                text = "".join(self._texts.pop(response.result.index, ()))
                self._results[response.result.index] = result_from_proto(response.result, text)
            case "delta":
                delta = delta_from_proto(response.delta)
                self._texts.setdefault(delta.index, []).append(delta.text)
                return delta
        return None

    @property
    def results(self) -> tuple[Result, ...]:
        """Results of the answers that have ended, by index."""
        return tuple(self._results[index] for index in sorted(self._results))


def result_from_proto(result: decode_pb2.Result, text: str = "") -> Result:
    """Convert the last message of an answer, whose text came before it."""
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
        text=text,
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
        attention_coverage=report.recovered_mass,
        head_classes={c.head_class: c.heads for c in report.head_classes},
    )

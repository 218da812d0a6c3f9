"""Measurements of a cache and of a request's time, for its result."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager

from headwise.v1 import cache_pb2, decode_pb2, prefill_pb2
from kvstore.cache import RaggedLayer
from kvstore.pool import SequencePages
from kvstore.row_codecs import RowCodec


@dataclasses.dataclass(frozen=True, slots=True)
class Memory:
    """Bytes and rows of one sequence at one moment."""

    dense_bytes: int
    resident_bytes: int
    rows_kept: int
    rows_dense: int


def measure(pages: SequencePages) -> Memory:
    """Sync the sequence, and return the bytes and rows that it holds."""
    pages.sync()
    return Memory(
        dense_bytes=pages.dense_bytes,
        resident_bytes=pages.resident_bytes,
        rows_kept=sum(map(sum, pages.row_counts())),
        rows_dense=pages.dense_rows,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Head:
    """The prompt's rows that one KV head holds, and the attention coverage of those rows."""

    layer: int
    head: int
    head_class: str
    rows: int
    attention_coverage: float


def heads_of(index: int, layer: RaggedLayer) -> tuple[Head, ...]:
    """Return the heads of a layer that has arrived."""
    parts = zip(layer.rules, layer.head_row_counts(), layer.attention_coverage, strict=True)
    return tuple(
        Head(index, head, rule.head_class, rows, attention_coverage)
        for head, (rule, rows, attention_coverage) in enumerate(parts)
    )


@dataclasses.dataclass(frozen=True, slots=True)
class TransferReport:
    """The cost of a cache's transfer from prefill, and the contents of the cache.

    `policy` made the cache; every parameter of it is spelled out. `context_tokens` counts the
    tokens of the stored cache that a generation began on, and is 0 where there was none.
    """

    policy: cache_pb2.Policy = dataclasses.field(default_factory=cache_pb2.Policy)
    heads: tuple[Head, ...] = ()
    wire_bytes: int = 0
    receive_seconds: float = 0.0
    stages: prefill_pb2.PrefillReport = dataclasses.field(default_factory=prefill_pb2.PrefillReport)
    context_tokens: int = 0

    def without_transfer_cost(self) -> TransferReport:
        """Return a copy with wire bytes and times zeroed, for a cache that was in the pool."""
        stages = prefill_pb2.PrefillReport()
        return dataclasses.replace(self, wire_bytes=0, receive_seconds=0.0, stages=stages)

    @property
    def profiled(self) -> bool:
        """Whether the policy measured the attention coverage of every head."""
        return all(head.attention_coverage > 0 for head in self.heads)

    @property
    def recovered_mass(self) -> float:
        """The mean attention coverage of all heads; 1 for an empty cache."""
        return (
            sum(h.attention_coverage for h in self.heads) / len(self.heads) if self.heads else 1.0
        )


@dataclasses.dataclass(frozen=True, slots=True)
class PromptCache:
    """The cache of a prompt before the engine has fed any token to it."""

    report: TransferReport
    memory: Memory
    codec: RowCodec


class Clock:
    """Measures where a request's time goes, and the time of each of its answers."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._queue_seconds = 0.0
        self._first_token: float | None = None
        # seconds at which each answer's first and last token were made
        self._tokens: dict[int, tuple[float, float]] = {}

    @contextmanager
    def queueing(self) -> Iterator[None]:
        """Count the time within the block as waiting for room."""
        began = time.perf_counter()
        yield
        self._queue_seconds += time.perf_counter() - began

    def token(self, answer: int) -> tuple[bool, float | None]:
        """Note a token of an answer.

        Return whether it is the request's first token, and the seconds since the answer's previous
        token, which are None for the answer's first.
        """
        now = time.perf_counter()
        first, before = self._tokens.get(answer, (now, None))
        self._tokens[answer] = first, now
        is_first, self._first_token = self._first_token is None, self._first_token or now
        return is_first, None if before is None else now - before

    @property
    def queue_seconds(self) -> float:
        """Seconds spent in the admission queue."""
        return self._queue_seconds

    @property
    def first_token_seconds(self) -> float:
        return (self._first_token or self._began) - self._began

    def timings(self, report: TransferReport, answer: int) -> decode_pb2.Timings:
        stages = report.stages
        first, last = self._tokens.get(answer, (0.0, 0.0))
        return decode_pb2.Timings(
            queue_seconds=self._queue_seconds + stages.queue_seconds,
            prefill_seconds=stages.prefill_seconds,
            profile_seconds=stages.profile_seconds,
            compact_seconds=stages.compact_seconds,
            ship_seconds=stages.ship_seconds,
            receive_seconds=report.receive_seconds,
            first_token_seconds=self.first_token_seconds,
            decode_seconds=last - first,
            total_seconds=time.perf_counter() - self._began,
        )


def memory_to_proto(
    memory: Memory, report: TransferReport, wire_bytes: int
) -> decode_pb2.MemoryReport:
    classes = collections.Counter(head.head_class for head in report.heads)
    return decode_pb2.MemoryReport(
        dense_bytes=memory.dense_bytes,
        resident_bytes=memory.resident_bytes,
        wire_bytes=wire_bytes,
        rows_kept=memory.rows_kept,
        rows_dense=memory.rows_dense,
        recovered_mass=report.recovered_mass,
        head_classes=[
            decode_pb2.HeadClassCount(head_class=name, heads=count)
            for name, count in sorted(classes.items())
        ],
    )


def heads_to_proto(report: TransferReport) -> list[decode_pb2.HeadReport]:
    return [
        decode_pb2.HeadReport(
            layer=head.layer,
            head=head.head,
            head_class=head.head_class,
            rows=head.rows,
            recovered_mass=head.attention_coverage,
        )
        for head in report.heads
    ]

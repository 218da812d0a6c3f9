"""What a cache occupies and where the time went, measured, for the result."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager

from headwise.v1 import cache_pb2, decode_pb2, prefill_pb2
from kvstore.cache import RaggedLayer
from kvstore.pool import SequencePages


@dataclasses.dataclass(frozen=True, slots=True)
class Memory:
    """Bytes and rows of one sequence at one moment."""

    dense_bytes: int
    resident_bytes: int
    rows_kept: int
    rows_dense: int


def measure(pages: SequencePages) -> Memory:
    """What the sequence holds right now."""
    heads = sum(shape.kv_heads for shape in pages.shapes)
    return Memory(
        dense_bytes=pages.dense_bytes,
        resident_bytes=pages.resident_bytes,
        rows_kept=sum(map(sum, pages.row_counts())),
        rows_dense=heads * pages.length,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Head:
    """What one KV head kept of the prompt."""

    layer: int
    head: int
    head_class: str
    rows: int
    attention_coverage: float


def heads_of(index: int, layer: RaggedLayer) -> tuple[Head, ...]:
    """The heads of a received layer."""
    parts = zip(layer.rules, layer.head_row_counts(), layer.attention_coverage, strict=True)
    return tuple(
        Head(index, head, rule.head_class, rows, attention_coverage)
        for head, (rule, rows, attention_coverage) in enumerate(parts)
    )


@dataclasses.dataclass(frozen=True, slots=True)
class TransferReport:
    """A cache that arrived whole: what it took, and what its heads kept.

    `policy` is what it was made with, every parameter spelled out; `context_tokens` those of a
    stored cache that what came later followed.
    """

    policy: cache_pb2.Policy = dataclasses.field(default_factory=cache_pb2.Policy)
    heads: tuple[Head, ...] = ()
    wire_bytes: int = 0
    receive_seconds: float = 0.0
    stages: prefill_pb2.PrefillReport = dataclasses.field(default_factory=prefill_pb2.PrefillReport)
    context_tokens: int = 0

    def without_transfer_cost(self) -> TransferReport:
        """For one who did not have to wait until it came."""
        stages = prefill_pb2.PrefillReport()
        return dataclasses.replace(self, wire_bytes=0, receive_seconds=0.0, stages=stages)

    @property
    def profiled(self) -> bool:
        """Whether the policy knew what every head's rows cover."""
        return all(head.attention_coverage > 0 for head in self.heads)

    @property
    def recovered_mass(self) -> float:
        """Mean over all heads; 1 for an empty cache, which lost nothing."""
        return (
            sum(h.attention_coverage for h in self.heads) / len(self.heads) if self.heads else 1.0
        )


class Clock:
    """Marks a request's moments, those of its answers apart."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._queue_seconds = 0.0
        self._first_token: float | None = None
        # each answer's first and last token
        self._tokens: dict[int, tuple[float, float]] = {}

    @contextmanager
    def queueing(self) -> Iterator[None]:
        """Within this the request waits for room."""
        began = time.perf_counter()
        yield
        self._queue_seconds += time.perf_counter() - began

    def token(self, answer: int) -> tuple[bool, float | None]:
        """A token was made: whether it is the request's first, and seconds since its answer's last.

        None for an answer's first.
        """
        now = time.perf_counter()
        first, before = self._tokens.get(answer, (now, None))
        self._tokens[answer] = first, now
        is_first, self._first_token = self._first_token is None, self._first_token or now
        return is_first, None if before is None else now - before

    @property
    def queue_seconds(self) -> float:
        """Spent in line for room."""
        return self._queue_seconds

    @property
    def first_token_seconds(self) -> float:
        return (self._first_token or self._began) - self._began

    def timings(self, received: TransferReport, answer: int) -> decode_pb2.Timings:
        stages = received.stages
        first, last = self._tokens.get(answer, (0.0, 0.0))
        return decode_pb2.Timings(
            queue_seconds=self._queue_seconds + stages.queue_seconds,
            prefill_seconds=stages.prefill_seconds,
            profile_seconds=stages.profile_seconds,
            compact_seconds=stages.compact_seconds,
            ship_seconds=stages.ship_seconds,
            receive_seconds=received.receive_seconds,
            first_token_seconds=self.first_token_seconds,
            decode_seconds=last - first,
            total_seconds=time.perf_counter() - self._began,
        )


def memory_to_proto(
    memory: Memory, received: TransferReport, wire_bytes: int
) -> decode_pb2.MemoryReport:
    classes = collections.Counter(head.head_class for head in received.heads)
    return decode_pb2.MemoryReport(
        dense_bytes=memory.dense_bytes,
        resident_bytes=memory.resident_bytes,
        wire_bytes=wire_bytes,
        rows_kept=memory.rows_kept,
        rows_dense=memory.rows_dense,
        recovered_mass=received.recovered_mass,
        head_classes=[
            decode_pb2.HeadClassCount(head_class=name, heads=count)
            for name, count in sorted(classes.items())
        ],
    )


def heads_to_proto(received: TransferReport) -> list[decode_pb2.HeadReport]:
    return [
        decode_pb2.HeadReport(
            layer=head.layer,
            head=head.head,
            head_class=head.head_class,
            rows=head.rows,
            recovered_mass=head.attention_coverage,
        )
        for head in received.heads
    ]

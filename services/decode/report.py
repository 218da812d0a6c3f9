"""What a cache occupies and where the time went, measured, for the result."""

from __future__ import annotations

import collections
import dataclasses
import time

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
    recovered: float


def heads_of(index: int, layer: RaggedLayer) -> tuple[Head, ...]:
    """The heads of a received layer."""
    parts = zip(layer.rules, layer.head_row_counts(), layer.recovered, strict=True)
    return tuple(
        Head(index, head, rule.head_class, rows, recovered)
        for head, (rule, rows, recovered) in enumerate(parts)
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Received:
    """A cache that arrived whole: what it took, and what its heads kept.

    `policy` is what it was made with, every parameter spelled out.
    """

    policy: cache_pb2.Policy = dataclasses.field(default_factory=cache_pb2.Policy)
    heads: tuple[Head, ...] = ()
    wire_bytes: int = 0
    receive_seconds: float = 0.0
    stages: prefill_pb2.PrefillReport = dataclasses.field(default_factory=prefill_pb2.PrefillReport)

    @property
    def recovered_mass(self) -> float:
        """Mean over all heads; 1 for an empty cache, which lost nothing."""
        return sum(h.recovered for h in self.heads) / len(self.heads) if self.heads else 1.0


class Clock:
    """Marks a request's moments."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._first_token = self._last_token = self._began
        self._tokens = 0

    def token(self) -> float | None:
        """A token was made; returns the seconds since the last, or None for the first."""
        before, self._last_token = self._last_token, time.perf_counter()
        self._tokens += 1
        if self._tokens == 1:
            self._first_token = self._last_token
            return None
        return self._last_token - before

    @property
    def first_token_seconds(self) -> float:
        return self._first_token - self._began

    def timings(self, received: Received) -> decode_pb2.Timings:
        stages = received.stages
        return decode_pb2.Timings(
            queue_seconds=stages.queue_seconds,
            prefill_seconds=stages.prefill_seconds,
            profile_seconds=stages.profile_seconds,
            compact_seconds=stages.compact_seconds,
            ship_seconds=stages.ship_seconds,
            receive_seconds=received.receive_seconds,
            first_token_seconds=self.first_token_seconds,
            decode_seconds=self._last_token - self._first_token,
            total_seconds=time.perf_counter() - self._began,
        )


def memory_to_proto(memory: Memory, received: Received, wire_bytes: int) -> decode_pb2.MemoryReport:
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


def heads_to_proto(received: Received) -> list[decode_pb2.HeadReport]:
    return [
        decode_pb2.HeadReport(
            layer=head.layer,
            head=head.head,
            head_class=head.head_class,
            rows=head.rows,
            recovered_mass=head.recovered,
        )
        for head in received.heads
    ]

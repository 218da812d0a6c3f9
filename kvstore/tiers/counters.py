"""Counts of a tier's calls and bytes, which a service can export."""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Mapping

from kvstore.tiers.base import Hit, Lookup, MissReason, PutResult, PutStatus


@dataclasses.dataclass(frozen=True, slots=True)
class TierCounts:
    """Totals since the start; bytes are those of the caches' tensors."""

    hits: int
    misses: Mapping[MissReason, int]
    puts: Mapping[PutStatus, int]
    promotions: int
    dropped_writes: int
    read_bytes: int
    written_bytes: int
    get_seconds: float
    put_seconds: float


class TierCounters:
    """Counters of one tier. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hits = 0
        self._misses: collections.Counter[MissReason] = collections.Counter()
        self._puts: collections.Counter[PutStatus] = collections.Counter()
        self._promotions = 0
        self._dropped_writes = 0
        self._read_bytes = 0
        self._written_bytes = 0
        self._get_seconds = 0.0
        self._put_seconds = 0.0

    def count_get(self, lookup: Lookup, seconds: float) -> None:
        with self._lock:
            self._get_seconds += seconds
            if isinstance(lookup, Hit):
                self._hits += 1
                self._read_bytes += lookup.cache.nbytes
            else:
                self._misses[lookup.reason] += 1

    def count_put(self, result: PutResult, nbytes: int, seconds: float, promoted: bool) -> None:
        with self._lock:
            self._put_seconds += seconds
            self._puts[result.status] += 1
            if result.stored:
                self._written_bytes += nbytes
                self._promotions += promoted

    def count_dropped(self) -> None:
        """A write for later that found no room in the queue, or could not be written."""
        with self._lock:
            self._dropped_writes += 1

    def snapshot(self) -> TierCounts:
        with self._lock:
            return TierCounts(
                hits=self._hits,
                misses=dict(self._misses),
                puts=dict(self._puts),
                promotions=self._promotions,
                dropped_writes=self._dropped_writes,
                read_bytes=self._read_bytes,
                written_bytes=self._written_bytes,
                get_seconds=self._get_seconds,
                put_seconds=self._put_seconds,
            )

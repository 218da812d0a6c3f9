"""Metrics of the store, read from its counts at every scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import REGISTRY, Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from kvstore.tiers.counters import TierCounts
from services.prefill.store.cache_store import CacheStore
from services.runtime.process import metrics


class StoreCollector(Collector):
    """Collects the counts of each tier; `counts` returns them by the tier's name.

    Labels are bounded: names of tiers, reasons of misses and outcomes of puts.
    """

    def __init__(self, counts: Callable[[], Mapping[str, TierCounts]]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        hits = _counter("hits", "Caches found", "tier")
        misses = _counter("misses", "Caches not found, by reason", "tier", "reason")
        puts = _counter("puts", "Caches put, by outcome", "tier", "outcome")
        moved = _counter("bytes", "Bytes of caches moved", "tier", "direction")
        seconds = _counter("seconds", "Time spent", "tier", "direction")
        dropped = _counter("dropped_writes", "Writes for later that found no room", "tier")
        for tier, counts in self._counts().items():
            hits.add_metric([tier], counts.hits)
            dropped.add_metric([tier], counts.dropped_writes)
            for reason, number in counts.misses.items():
                misses.add_metric([tier, reason.value], number)
            for status, number in counts.puts.items():
                puts.add_metric([tier, status.value], number)
            moved.add_metric([tier, "read"], counts.read_bytes)
            moved.add_metric([tier, "written"], counts.written_bytes)
            seconds.add_metric([tier, "read"], counts.get_seconds)
            seconds.add_metric([tier, "written"], counts.put_seconds)
        yield from (hits, misses, puts, moved, seconds, dropped)


def watch_store(store: CacheStore) -> None:
    """Register the metrics of this process's store."""
    REGISTRY.register(StoreCollector(store.counts))
    metrics.LEASES.set_function(lambda: store.lease_count)
    metrics.RESIDENT_BYTES.labels("store").set_function(lambda: store.memory_bytes)


def _counter(name: str, description: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"headwise_store_{name}", description, labels=labels)

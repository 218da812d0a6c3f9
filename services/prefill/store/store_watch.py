"""What the stores did, read from their own counts whenever it is scraped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import REGISTRY, Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from kvstore.tiers.counters import TierCounts
from services.prefill.store.leased_caches import Keeper
from services.runtime.process import metrics


class StoreCollector(Collector):
    """Labels are bounded: tiers, and the reasons and outcomes that they know.

    `counts` gives those of each tier by its name.
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


def watch_store(keeper: Keeper) -> None:
    """Tie the store's metrics to this process's one."""
    REGISTRY.register(StoreCollector(keeper.store.counts))
    metrics.LEASES.set_function(lambda: len(keeper.leases))
    metrics.RESIDENT_BYTES.labels("store").set_function(lambda: keeper.store.memory_bytes)


def _counter(name: str, description: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"headwise_store_{name}", description, labels=labels)

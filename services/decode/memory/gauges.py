"""Gauges that read the pool at each scrape, so that they cannot drift."""

from __future__ import annotations

from typing import Any

from kvstore.pool import PagePool
from services.decode.memory.arbiter import MemoryArbiter
from services.decode.memory.resident_caches import ResidentCaches
from services.decode.memory.sessions import Sessions
from services.runtime.process import metrics


def watch_memory(
    pool: PagePool,
    arbiter: MemoryArbiter[Any],
    sessions: Sessions,
    resident_caches: ResidentCaches,
    swap_bytes: int,
) -> None:
    """Connect the memory gauges to the pool of this process."""
    metrics.SEQUENCES.set_function(lambda: arbiter.sequences)
    metrics.QUEUED.set_function(lambda: arbiter.queued)
    metrics.CONTEXTS.set_function(lambda: len(resident_caches))
    metrics.SESSIONS.set_function(lambda: len(sessions))
    metrics.PREEMPTED.set_function(lambda: len(arbiter.preempted))
    metrics.DENSE_EQUIVALENT_BYTES.set_function(lambda: pool.dense_bytes)
    metrics.RESIDENT_BYTES.labels("pool").set_function(lambda: pool.resident_bytes)
    metrics.RESIDENT_BYTES.labels("host").set_function(lambda: arbiter.swapped_bytes)
    metrics.CAPACITY_BYTES.labels("pool").set(pool.capacity_bytes)
    metrics.CAPACITY_BYTES.labels("host").set(swap_bytes)
    metrics.POOL_ROWS.set_function(lambda: pool.rows)
    metrics.POOL_FRAGMENTATION.set_function(lambda: pool.fragmentation)
    metrics.POOL_PAGES.labels("used").set_function(lambda: pool.used_pages)
    metrics.POOL_PAGES.labels("reserved").set_function(lambda: pool.reserved_pages)
    metrics.POOL_PAGES.labels("free").set_function(lambda: pool.free_pages)

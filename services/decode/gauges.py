"""Gauges that read the pool itself whenever they are scraped, so that they cannot drift."""

from __future__ import annotations

from kvstore.pool import PagePool
from services.decode.admission import Admission
from services.runtime import metrics


def watch_memory(pool: PagePool, admission: Admission) -> None:
    """Tie the memory gauges to this process's pool."""
    metrics.SEQUENCES.set_function(lambda: admission.sequences)
    metrics.DENSE_EQUIVALENT_BYTES.set_function(lambda: admission.dense_bytes)
    metrics.RESIDENT_BYTES.labels("pool").set_function(lambda: pool.resident_bytes)
    metrics.POOL_ROWS.set_function(lambda: pool.rows)
    metrics.POOL_PAGES.labels("used").set_function(lambda: pool.used_pages)
    metrics.POOL_PAGES.labels("reserved").set_function(lambda: pool.reserved_pages)
    metrics.POOL_PAGES.labels("free").set_function(lambda: pool.free_pages)

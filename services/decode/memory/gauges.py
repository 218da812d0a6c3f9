"""Gauges that read the pool itself whenever they are scraped, so that they cannot drift."""

from __future__ import annotations

from kvstore.pool import PagePool
from services.decode.memory.admission import Admission
from services.decode.memory.resident_caches import Contexts
from services.decode.memory.room import Room
from services.decode.memory.sessions import Sessions
from services.runtime.process import metrics


def watch_memory(
    pool: PagePool, admission: Admission, sessions: Sessions, contexts: Contexts, room: Room
) -> None:
    """Tie the memory gauges to this process's pool."""
    metrics.SEQUENCES.set_function(lambda: admission.sequences)
    metrics.QUEUED.set_function(lambda: admission.queued)
    metrics.CONTEXTS.set_function(lambda: len(contexts))
    metrics.SESSIONS.set_function(lambda: len(sessions))
    metrics.PREEMPTED.set_function(lambda: len(room.preempted))
    metrics.DENSE_EQUIVALENT_BYTES.set_function(lambda: pool.dense_bytes)
    metrics.RESIDENT_BYTES.labels("pool").set_function(lambda: pool.resident_bytes)
    metrics.RESIDENT_BYTES.labels("host").set_function(lambda: room.swapped_bytes)
    metrics.CAPACITY_BYTES.labels("pool").set(pool.capacity_bytes)
    metrics.CAPACITY_BYTES.labels("host").set(room.swap_bytes)
    metrics.POOL_ROWS.set_function(lambda: pool.rows)
    metrics.POOL_FRAGMENTATION.set_function(lambda: pool.fragmentation)
    metrics.POOL_PAGES.labels("used").set_function(lambda: pool.used_pages)
    metrics.POOL_PAGES.labels("reserved").set_function(lambda: pool.reserved_pages)
    metrics.POOL_PAGES.labels("free").set_function(lambda: pool.free_pages)

"""A memory arbiter for tests, with nothing idle to evict unless the test says otherwise."""

from __future__ import annotations

from typing import Any

from kvstore.pool import PagePool
from services.decode.memory.arbiter import MemoryArbiter, MemoryLimits
from services.decode.memory.freed_pages import FreedPages
from services.decode.memory.pool_shares import Evictable


class NothingIdle:
    """No cache can be evicted."""

    def evict(self, owner: str = "") -> bool:
        return False


def new_arbiter(
    pool: PagePool,
    *,
    sequences: int = 9,
    queued: int = 9,
    reservation_timeout_seconds: float = 0.2,
    swap_bytes: int = 1 << 30,
    sessions: Evictable | None = None,
    resident_caches: Evictable | None = None,
    freed: FreedPages | None = None,
) -> MemoryArbiter[Any]:
    """Build an arbiter; without `freed`, tests tell it of the pages that come free."""
    return MemoryArbiter(
        pool,
        resident_caches or NothingIdle(),
        sessions or NothingIdle(),
        freed or FreedPages(lambda handler: None),
        MemoryLimits(
            max_sequences=sequences,
            max_queued=queued,
            reservation_timeout_seconds=reservation_timeout_seconds,
            swap_bytes=swap_bytes,
        ),
    )

"""The tenants' shares of the pool's pages: who gives up what for whom."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from kvstore.errors import PoolExhausted
from kvstore.pool import PageCount, PagePool
from kvstore.shares import who_yields
from services.runtime.process import metrics


class Evictable(Protocol):
    """Caches that nothing runs on; they may be evicted from any thread."""

    def evict(self, owner: str = "") -> bool:
        """Drop the owner's least recently used idle cache; False if it has none."""


class PoolShares:
    """Frees idle caches and names the tenant whose sequences yield. Safe from any thread.

    An owner's bytes are those of its sessions, resident caches, arriving and running sequences.
    """

    def __init__(self, pool: PagePool, resident_caches: Evictable, sessions: Evictable) -> None:
        self._pool = pool
        self._resident_caches = resident_caches
        self._sessions = sessions

    def free_idle(self, owner: str, refused: PoolExhausted) -> bool:
        """Evict one idle cache for pages that `owner` was refused; False if none may go.

        It is one of an owner that holds more than its share and than `owner` would, the largest
        first; else one of `owner` itself.
        """
        held = self._pool.bytes_by_owner()
        share = self._pool.capacity_bytes / len({*held, owner})
        asked = self._pool.bytes_of(PageCount(refused.requested_pages, refused.requested_pages))
        above = max(share, held[owner] + asked)
        for name, nbytes in held.most_common():
            if nbytes <= above:
                break
            if name != owner and self._evict(name):
                metrics.SHARES_YIELDED.labels("pool").inc()
                return True
        return self._evict(owner)

    def yielding(self, owner: str, owners: Iterable[str]) -> str:
        """Return the owner, of `owners`, whose sequence has to go for one of `owner`."""
        held, among = self._pool.bytes_by_owner(), set(owners)
        return who_yields({name: held[name] for name in among}, owner, 0)

    def _evict(self, owner: str) -> bool:
        """Evict a resident cache, which can be fetched again, or else a session."""
        return self._resident_caches.evict(owner) or self._sessions.evict(owner)

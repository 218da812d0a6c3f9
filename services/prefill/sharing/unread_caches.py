"""Computed caches that wait for their readers, in bounded bytes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from headwise.errors import Overloaded
from kvstore.shares import Shares
from services.prefill.sharing.shared_prefill import SharedPrefill
from services.runtime.process import metrics
from services.runtime.serving.status import RETRY_AFTER_SECONDS


class UnreadCaches:
    """Bytes that tenants hold in caches that are computed and not read yet.

    A tenant may begin a prompt while these take less than `capacity_bytes`. At the capacity the
    tenant with most of them yields: its own prompts wait, or its oldest cache ends for another
    tenant's prompt. The prompts that are being computed come on top of the capacity.

    `hold` belongs to the event loop; `may_begin` may be called from any thread.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._shares = Shares(capacity_bytes)
        # the oldest first
        self._tenants: dict[SharedPrefill, str] = {}
        self._lock = threading.Lock()
        self.on_room: Callable[[], None] = lambda: None

    @contextlib.contextmanager
    def hold(self, tenant: str, cache: SharedPrefill) -> Iterator[None]:
        """Count a computed cache until the block ends."""
        with self._lock:
            self._tenants[cache] = tenant
            self._shares.take(tenant, cache.nbytes)
            metrics.PREFILL_UNREAD_BYTES.set(self._shares.total)
        try:
            yield
        finally:
            with self._lock:
                self._remove(cache)
            self.on_room()

    def may_begin(self, tenant: str) -> bool:
        """Whether the tenant may begin a prompt; ends a cache of another tenant if need be."""
        with self._lock:
            while (yielding := self._shares.who_yields(tenant)) is not None:
                if yielding == tenant:
                    return False
                self._end_oldest(yielding)
        return True

    def _end_oldest(self, tenant: str) -> None:
        oldest = next(cache for cache, owner in self._tenants.items() if owner == tenant)
        self._remove(oldest)
        metrics.SHARES_YIELDED.labels("unread_bytes").inc()
        oldest.drop(_too_many())

    def _remove(self, cache: SharedPrefill) -> None:
        tenant = self._tenants.pop(cache, None)
        if tenant is not None:
            self._shares.give_back(tenant, cache.nbytes)
            metrics.PREFILL_UNREAD_BYTES.set(self._shares.total)


def _too_many() -> Overloaded:
    return Overloaded(
        "this tenant's computed caches wait for their readers, and others need the room: read "
        "faster, or ask for fewer at once",
        "UNREAD_CACHES",
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )

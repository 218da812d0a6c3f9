"""Keeps caches under leases, and finds them again."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from headwise.errors import InvalidRequest, NotFound, Unavailable
from kvstore.cache import CompactCache, ModelFingerprint
from kvstore.tiers import Hit, MissReason, PutStatus
from kvstore.tiers.content_key import ContentKey
from services.prefill.store.cache_store import CacheStore
from services.prefill.store.leases import Lease, Leases, key_of

# a store has a cache for longer than a lease, so that renewing one seldom writes it again
_LIFETIMES = 2.0
_MAY_COME_BACK = (MissReason.TIMEOUT, MissReason.UNAVAILABLE)


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """A stored cache, and the lease by which it was asked for, if it was by one."""

    key: ContentKey
    cache: CompactCache
    lease: Lease | None


class Keeper:
    """Used on the event loop alone. `keeps_prompts`: caches stay when their last lease is over."""

    def __init__(
        self,
        store: CacheStore,
        model: ModelFingerprint,
        *,
        max_keep_seconds: float,
        max_leases: int,
        keeps_prompts: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self.leases = Leases(self._let_go, most=max_leases, clock=clock)
        self.max_keep_seconds = max_keep_seconds
        self._model = model
        self._keeps_prompts = keeps_prompts
        self._clock = clock
        # leased caches: until when the stores have them
        self._stored_until: dict[ContentKey, float] = {}
        self._pinned: set[ContentKey] = set()

    def seconds(self, asked: float) -> float:
        """How long to keep, checked. Raises `InvalidRequest`."""
        if not 0 <= asked <= self.max_keep_seconds:
            raise InvalidRequest(
                f"keep_for_seconds: {asked} is not within 0 and {self.max_keep_seconds:g}",
                "PARAMETER_OUT_OF_RANGE",
                {"field": "keep_for_seconds"},
            )
        return asked

    async def keep(self, key: ContentKey, cache: CompactCache, seconds: float) -> Lease | PutStatus:
        """A lease of the cache, stored, or why no store took it.

        Raises `Overloaded` where there are as many leases as there may be.
        """
        # first, so that another lease's end does not take the cache away meanwhile
        lease = self.leases.grant(key, cache, seconds)
        status = await self._store(lease, cache)
        if status is not PutStatus.STORED:
            self.leases.refuse(lease)
            return status
        return lease

    async def find(self, handle: str, namespace: str, within_seconds: float | None) -> Found:
        """By handle or by content key.

        Raises `InvalidRequest`, `NotFound` with the reason, or `Unavailable` if a store does not
        answer.
        """
        key, lease = key_of(handle, namespace), self.lease(handle, namespace)
        expected = lease.fingerprint if lease else self._model
        lookup = await self.store.find(key, expected, within_seconds)
        if not isinstance(lookup, Hit):
            kind = Unavailable if lookup.reason in _MAY_COME_BACK else NotFound
            reason = f"CACHE_{lookup.reason.upper()}"
            raise kind(f"no cache there: {lookup.reason}", reason, {"field": "handle"})
        if lease:
            self._pin(key)
        return Found(key, lookup.cache, lease)

    def lease(self, handle: str, namespace: str) -> Lease | None:
        """The lease, if the handle is of one; the stores are not asked.

        Raises `InvalidRequest`, and `NotFound` for one that is over.
        """
        key_of(handle, namespace)
        return self.leases.find(handle, namespace)

    async def renew(self, handle: str, namespace: str, seconds: float) -> Lease:
        """Raises `NotFound`."""
        lease = self.leases.renew(handle, namespace, self.seconds(seconds))
        if self._stored_until.get(lease.key, 0.0) < lease.expires:
            found = await self.find(handle, namespace, None)
            await self._store(lease, found.cache)
        return lease

    def release(self, handle: str, namespace: str) -> None:
        """Raises `NotFound`."""
        key_of(handle, namespace)
        self.leases.release(handle, namespace)

    async def _store(self, lease: Lease, cache: CompactCache) -> PutStatus:
        key, now = lease.key, self._clock()
        if self._stored_until.get(key, now) <= lease.expires:
            lifetime = _LIFETIMES * self.max_keep_seconds
            result = await self.store.keep(key, cache, lifetime)
            if not result.stored:
                return result.status
            if self.leases.held(key):
                self._stored_until[key] = now + lifetime
        self._pin(key)
        return PutStatus.STORED

    def _pin(self, key: ContentKey) -> None:
        if key not in self._pinned and self.leases.held(key) and self.store.pin(key):
            self._pinned.add(key)

    def _let_go(self, key: ContentKey) -> None:
        """The last lease is over."""
        self._stored_until.pop(key, None)
        if not self._keeps_prompts:
            self.store.drop(key)
        elif key in self._pinned:
            self.store.unpin(key)
        self._pinned.discard(key)

"""Leases keep caches from eviction, end one by one, and leave nothing behind."""

from __future__ import annotations

import pytest
import torch

from headwise import InvalidRequest, NotFound, Overloaded
from kvstore.cache import CompactCache, Fingerprint, HeadRows, ModelFingerprint, RaggedLayer
from kvstore.rules import RetentionRule
from kvstore.tiers import Budget, MemoryTier, PutStatus, WriteMode
from kvstore.tiers.content_key import ContentKey
from services.prefill.store.cache_store import CacheStore, StoreLimits
from services.prefill.store.leases import Lease
from tests.kvstore.tiers.clock import Clock

_MODEL = ModelFingerprint("model", "", "a" * 64, "b" * 64, "float32")


def _cache(number: int) -> CompactCache:
    rows = torch.full((5, 4), float(number))
    positions = torch.arange(5, dtype=torch.int32)
    layer = RaggedLayer.of_heads([HeadRows(RetentionRule(full=True), rows, rows, positions)])
    fingerprint = Fingerprint(_MODEL, f"{number:064x}", "full", "{}")
    return CompactCache(fingerprint, (layer,), 5)


_BYTES = _cache(0).nbytes


class Kept:
    """A store with memory for three caches, and its clock."""

    def __init__(self, *, keeps_prompts: bool = False, each_bytes: int | None = None) -> None:
        self.clock = Clock()
        memory = MemoryTier(Budget(3 * _BYTES, each_bytes=each_bytes), clock=self.clock)
        limits = StoreLimits(
            timeout_seconds=5, max_keep_seconds=100, max_leases=5, keeps_prompts=keeps_prompts
        )
        self.store = CacheStore(
            memory, [memory], _MODEL, limits, mode=WriteMode.BACK, clock=self.clock
        )

    async def keep(self, number: int, seconds: float = 10, namespace: str = "a") -> Lease:
        lease = await self.try_to_keep(number, seconds, namespace)
        assert isinstance(lease, Lease)
        return lease

    async def try_to_keep(
        self, number: int, seconds: float = 10, namespace: str = "a"
    ) -> Lease | PutStatus:
        cache = _cache(number)
        key = ContentKey.of(cache.fingerprint, namespace)
        return await self.store.keep(key, cache, seconds)

    @property
    def nbytes(self) -> int:
        return self.store.memory_bytes


async def test_the_last_lease_of_a_cache_takes_its_memory_along() -> None:
    kept = Kept()
    first, second = await kept.keep(1), await kept.keep(1)
    assert first.key == second.key
    assert kept.nbytes == _BYTES
    kept.store.release(first.handle, "a")
    found = await kept.store.find(second.handle, "a", None)
    assert torch.equal(found.cache.layers[0].keys, _cache(1).layers[0].keys)
    kept.clock.advance(11)
    kept.store.expire_leases()
    assert kept.nbytes == 0
    for handle, reason in ((first.handle, "LEASE_RELEASED"), (second.handle, "LEASE_EXPIRED")):
        with pytest.raises(NotFound) as caught:
            await kept.store.find(handle, "a", None)
        assert caught.value.reason == reason


async def test_a_leased_cache_is_not_evicted_and_one_too_many_is_refused() -> None:
    kept = Kept()
    leases = [await kept.keep(number) for number in range(3)]
    assert await kept.try_to_keep(3) is PutStatus.FULL
    for lease in leases:
        assert (await kept.store.find(lease.handle, "a", None)).lease == lease
    kept.store.release(leases[0].handle, "a")
    await kept.keep(3)


async def test_a_renewed_lease_outlives_the_first_lifetime_in_the_tiers() -> None:
    kept = Kept()
    lease = await kept.keep(1, 100)
    for _ in range(5):
        kept.clock.advance(90)
        lease = await kept.store.renew(lease.handle, "a", 0)
    assert (await kept.store.find(lease.handle, "a", None)).cache.next_position == 5
    kept.clock.advance(101)
    with pytest.raises(NotFound):
        await kept.store.renew(lease.handle, "a", 0)
    assert kept.nbytes == 0


async def test_where_prompts_are_kept_a_cache_stays_after_its_lease() -> None:
    kept = Kept(keeps_prompts=True)
    lease = await kept.keep(1)
    kept.store.release(lease.handle, "a")
    assert (await kept.store.find(lease.key.digest, "a", None)).lease is None
    # and can now be evicted
    for number in range(2, 5):
        await kept.keep(number)
    with pytest.raises(NotFound) as caught:
        await kept.store.find(lease.key.digest, "a", None)
    assert caught.value.reason == "CACHE_EVICTED"


async def test_a_tenants_quota_is_its_own() -> None:
    kept = Kept(each_bytes=_BYTES)
    await kept.keep(1, namespace="a")
    assert await kept.try_to_keep(2, namespace="a") is PutStatus.OVER_QUOTA
    lease = await kept.keep(2, namespace="b")
    with pytest.raises(NotFound):
        await kept.store.find(lease.handle, "a", None)
    with pytest.raises(NotFound):
        kept.store.release(lease.handle, "a")
    kept.store.release(lease.handle, "b")


async def test_invalid_ttls_and_handles_are_refused() -> None:
    kept = Kept()
    for seconds in (-1.0, 101.0, float("nan")):
        with pytest.raises(InvalidRequest):
            kept.store.checked_seconds(seconds)
    for handle in ("", "x", "a" * 63, "a" * 64 + ".b", "a" * 64 + "." + "g" * 32):
        with pytest.raises(InvalidRequest) as caught:
            await kept.store.find(handle, "a", None)
        assert caught.value.reason == "MALFORMED_HANDLE"
    for _ in range(5):
        await kept.keep(1)
    with pytest.raises(Overloaded) as full:
        await kept.keep(1)
    assert full.value.reason == "TOO_MANY_LEASES"

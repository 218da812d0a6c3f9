"""The memory tier hands out what it was given, and counts what that really keeps alive."""

from __future__ import annotations

import dataclasses

import torch

from kvstore.tiers.base import Hit, Miss, MissReason, PutStatus
from kvstore.tiers.content_key import ContentKey
from kvstore.tiers.deadline import Deadline
from kvstore.tiers.ledger import Budget
from kvstore.tiers.memory import MemoryTier, resident_bytes
from tests.kvstore.wire.caches import numbered, same, two_layers

CACHE, _ = two_layers()
CACHES = tuple(numbered(CACHE, number) for number in range(1, 3))
KEYS = tuple(ContentKey.of(cache.fingerprint, "tenant") for cache in (CACHE, *CACHES))
DEADLINE = Deadline.after(3600)


def test_memory_returns_the_stored_object_without_a_copy() -> None:
    tier = MemoryTier(Budget(1 << 20))
    tier.put(KEYS[0], CACHE, None, DEADLINE)
    found = tier.get(KEYS[0], CACHE.fingerprint, DEADLINE)
    assert isinstance(found, Hit)
    assert found.cache is CACHE
    assert tier.bytes_in_use(None, DEADLINE) == CACHE.nbytes


def test_small_views_of_large_memory_are_copied_out_of_it() -> None:
    large = torch.empty(1 << 20)
    keys = CACHE.layers[0].keys
    view = large[: keys.numel()].view(keys.shape).copy_(keys)
    layers = (dataclasses.replace(CACHE.layers[0], keys=view), CACHE.layers[1])
    cache = dataclasses.replace(CACHE, layers=layers)
    assert resident_bytes(cache) > large.nbytes
    tier = MemoryTier(Budget(1 << 16))
    assert tier.put(KEYS[0], cache, None, DEADLINE).stored
    large.zero_()
    found = tier.get(KEYS[0], CACHE.fingerprint, DEADLINE)
    assert isinstance(found, Hit)
    assert same(found.cache, CACHE)
    assert tier.bytes_in_use(None, DEADLINE) == resident_bytes(found.cache) == CACHE.nbytes


def test_pinned_caches_stay() -> None:
    tier = MemoryTier(Budget(2 * CACHE.nbytes))
    tier.put(KEYS[0], CACHE, None, DEADLINE)
    assert tier.pin(KEYS[0])
    assert not tier.pin(KEYS[1])
    for key, cache in zip(KEYS[1:], CACHES, strict=True):
        assert tier.put(key, cache, None, DEADLINE).stored
    assert tier.get(KEYS[1], CACHES[0].fingerprint, DEADLINE) == Miss(MissReason.EVICTED)
    assert tier.pin(KEYS[2])
    assert tier.put(KEYS[1], CACHES[0], None, DEADLINE).status is PutStatus.FULL
    tier.unpin(KEYS[0])
    assert tier.put(KEYS[1], CACHES[0], None, DEADLINE).stored
    assert tier.get(KEYS[0], CACHE.fingerprint, DEADLINE) == Miss(MissReason.EVICTED)
    assert tier.evictions == 2

"""Tiers under random operations, against a plain dictionary with a byte budget."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import TypeAlias

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvstore.cache import CompactCache, digest_tokens
from kvstore.tiers.base import Hit, MissReason, PutStatus, Tier
from kvstore.tiers.bounded import BoundedTier
from kvstore.tiers.content_key import ContentKey
from kvstore.tiers.deadline import Deadline
from kvstore.tiers.disk import DiskTier
from kvstore.tiers.ledger import Budget
from kvstore.tiers.memory import MemoryTier, resident_bytes
from kvstore.tiers.stored_form import CacheWriter
from tests.kvstore.tiers.conftest import TierMaker
from tests.kvstore.wire.caches import RULES, fingerprint, ragged_layer, same

SECONDS = 10.0
IDENTITIES = {
    ContentKey.of(one, "random"): one
    for one in (
        dataclasses.replace(fingerprint(), token_digest=digest_tokens([number]))
        for number in range(5)
    )
}
KEYS = tuple(IDENTITIES)
ROWS = (0, 5, 12, 30)
CACHES = tuple(
    CompactCache(fingerprint(), (ragged_layer((rows,), (RULES[1],), 8, torch.float32, rows),), 40)
    for rows in ROWS
)
# two of the largest and no third
BUDGET_BYTES = 2 * (CacheWriter(CACHES[-1]).head_bytes + CACHES[-1].nbytes) + 100

# what, key, cache
Step: TypeAlias = tuple[str, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(("put", "put", "get", "get", "delete", "contains")),
        st.integers(0, len(KEYS) - 1),
        st.integers(0, len(CACHES) - 1),
    ),
    max_size=30,
)


@dataclasses.dataclass
class SlowTier:
    """A dictionary in the order of use, which forgets the oldest while it is too large."""

    size_of: Callable[[CompactCache], int]
    budget_bytes: int
    held: dict[ContentKey, CompactCache] = dataclasses.field(default_factory=dict)
    evicted: set[ContentKey] = dataclasses.field(default_factory=set)

    def used(self) -> int:
        return sum(map(self.size_of, self.held.values()))

    def put(self, key: ContentKey, cache: CompactCache) -> bool:
        if self.size_of(cache) > self.budget_bytes:
            return False
        self.held.pop(key, None)
        self.held[key] = cache
        self.evicted.discard(key)
        while self.used() > self.budget_bytes:
            oldest = next(iter(self.held))
            del self.held[oldest]
            self.evicted.add(oldest)
        return True

    def get(self, key: ContentKey) -> CompactCache | None:
        if key in self.held:
            self.held[key] = self.held.pop(key)
        return self.held.get(key)

    def delete(self, key: ContentKey) -> None:
        if self.held.pop(key, None) is not None:
            self.evicted.discard(key)


def file_bytes(cache: CompactCache) -> int:
    return CacheWriter(cache).head_bytes + cache.nbytes


@contextlib.contextmanager
def memory(folder: pathlib.Path, maker: TierMaker) -> Iterator[tuple[Tier, SlowTier]]:
    budget = 2 * resident_bytes(CACHES[-1]) + 100
    yield MemoryTier(Budget(budget)), SlowTier(resident_bytes, budget)


@contextlib.contextmanager
def disk(folder: pathlib.Path, maker: TierMaker) -> Iterator[tuple[Tier, SlowTier]]:
    inner = DiskTier(folder, Budget(BUDGET_BYTES))
    for key in KEYS:
        inner.delete(key, None)
    tier = BoundedTier(inner, workers=1)
    yield tier, SlowTier(file_bytes, BUDGET_BYTES)
    tier.close()
    inner.close()


@contextlib.contextmanager
def valkey(folder: pathlib.Path, maker: TierMaker) -> Iterator[tuple[Tier, SlowTier]]:
    """A server with room for everything."""
    tier = maker("valkey")
    for key in KEYS:
        tier.delete(key, Deadline.after(SECONDS))
    yield tier, SlowTier(file_bytes, 1 << 40)


@pytest.mark.parametrize("make", [memory, disk, valkey])
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(script=STEPS)
def test_a_tier_holds_what_the_dictionary_holds(
    make: Callable[..., contextlib.AbstractContextManager[tuple[Tier, SlowTier]]],
    script: list[Step],
    tmp_path: pathlib.Path,
    make_tier: TierMaker,
) -> None:
    with make(tmp_path, make_tier) as (tier, slow):
        for step in script:
            apply(tier, slow, step)
            assert tier.bytes_in_use("random", Deadline.after(SECONDS)) == slow.used()
        for key in KEYS:
            assert_same_answer(tier, slow, key)


def apply(tier: Tier, slow: SlowTier, step: Step) -> None:
    what, key = step[0], KEYS[step[1]]
    cache = dataclasses.replace(CACHES[step[2]], fingerprint=IDENTITIES[key])
    if what == "put":
        stored = tier.put(key, cache, None, Deadline.after(SECONDS)).status is PutStatus.STORED
        assert stored == slow.put(key, cache)
    elif what == "get":
        assert_same_answer(tier, slow, key)
    elif what == "contains":
        assert tier.contains(key, Deadline.after(SECONDS)) == (key in slow.held)
    else:
        assert tier.delete(key, Deadline.after(SECONDS))
        slow.delete(key)


def assert_same_answer(tier: Tier, slow: SlowTier, key: ContentKey) -> None:
    found, wanted = tier.get(key, IDENTITIES[key], Deadline.after(SECONDS)), slow.get(key)
    if wanted is not None:
        assert isinstance(found, Hit)
        assert same(found.cache, wanted)
    else:
        assert not isinstance(found, Hit)
        gone = MissReason.EVICTED if key in slow.evicted else MissReason.ABSENT
        assert found.reason is gone

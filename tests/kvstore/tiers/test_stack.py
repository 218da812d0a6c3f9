"""A stack reads through its tiers, promotes, and writes through or back."""

from __future__ import annotations

import pathlib
import threading
from collections.abc import Iterator

import pytest

from kvstore.cache import CompactCache
from kvstore.errors import InvalidParameter
from kvstore.tiers.base import Expected, Hit, Lookup, Miss, MissReason, PutResult, PutStatus, Tier
from kvstore.tiers.bounded import BoundedTier
from kvstore.tiers.content_key import ContentKey
from kvstore.tiers.deadline import Deadline
from kvstore.tiers.disk import DiskTier
from kvstore.tiers.ledger import Budget
from kvstore.tiers.memory import MemoryTier
from kvstore.tiers.stack import TierStack, WriteMode
from tests.kvstore.tiers.clock import Clock
from tests.kvstore.wire.caches import same, two_layers

CACHE, _ = two_layers()
KEY = ContentKey.of(CACHE.fingerprint)
OTHER = ContentKey("default", "0" * 64)
SECONDS = 10.0


def due() -> Deadline:
    """Return a deadline that a working tier keeps."""
    return Deadline.after(SECONDS)


class DeadTier:
    """A store that answers nothing."""

    name = "dead"

    def put(
        self,
        key: ContentKey,
        cache: CompactCache,
        lifetime_seconds: float | None,
        deadline: Deadline,
    ) -> PutResult:
        return PutResult(PutStatus.UNAVAILABLE)

    def get(self, key: ContentKey, expected: Expected, deadline: Deadline) -> Lookup:
        return Miss(MissReason.UNAVAILABLE)

    def delete(self, key: ContentKey, deadline: Deadline) -> bool:
        return False

    def contains(self, key: ContentKey, deadline: Deadline) -> bool:
        return False

    def bytes_in_use(self, namespace: str | None, deadline: Deadline) -> None:
        return None


class SlowTier(MemoryTier):
    """Memory that takes nothing until it is let."""

    def __init__(self) -> None:
        super().__init__(Budget(1 << 20), name="slow")
        self.gate = threading.Event()

    def put(
        self,
        key: ContentKey,
        cache: CompactCache,
        lifetime_seconds: float | None,
        deadline: Deadline,
    ) -> PutResult:
        assert self.gate.wait(30)
        return super().put(key, cache, lifetime_seconds, deadline)


@pytest.fixture
def memory(clock: Clock) -> MemoryTier:
    return MemoryTier(Budget(CACHE.nbytes), clock=clock)


@pytest.fixture
def disk(tmp_path: pathlib.Path, clock: Clock) -> Iterator[BoundedTier]:
    inner = DiskTier(tmp_path, Budget(1 << 20), clock=clock)
    tier = BoundedTier(inner)
    yield tier
    tier.close()
    inner.close()


def hit(tier: Tier, key: ContentKey = KEY) -> bool:
    found = tier.get(key, CACHE.fingerprint, due())
    return isinstance(found, Hit) and same(found.cache, CACHE)


def test_what_fell_out_of_memory_is_read_from_disk_and_promoted(
    memory: MemoryTier, disk: BoundedTier, clock: Clock
) -> None:
    stack = TierStack([memory, disk], clock=clock)
    stack.put(KEY, CACHE, 50, due())
    stack.put(OTHER, CACHE, None, due())
    assert not hit(memory)
    assert hit(stack)
    assert hit(memory)
    counts = stack.counts()
    assert (counts["memory"].hits, counts["disk"].hits) == (0, 1)
    assert counts["memory"].misses == {MissReason.EVICTED: 1}
    assert counts["memory"].promotions == 1
    assert counts["disk"].puts == {PutStatus.STORED: 2}
    assert counts["disk"].read_bytes == CACHE.nbytes
    assert counts["disk"].written_bytes == 2 * CACHE.nbytes
    # promoted for the time that was left, not for ever
    clock.advance(60)
    assert memory.get(KEY, CACHE.fingerprint, due()) == Miss(MissReason.EXPIRED)
    stack.close()


def test_promotion_reaches_every_tier_above(
    memory: MemoryTier, disk: BoundedTier, clock: Clock
) -> None:
    lowest = MemoryTier(Budget(1 << 20), name="lowest", clock=clock)
    lowest.put(KEY, CACHE, None, due())
    stack = TierStack([memory, disk, lowest], clock=clock)
    assert hit(stack)
    assert hit(memory)
    assert stack.flush(due())
    assert hit(disk)
    stack.close()


def test_write_back_answers_before_the_lower_tier_has_it(memory: MemoryTier) -> None:
    slow = SlowTier()
    stack = TierStack([memory, slow], WriteMode.BACK)
    assert stack.put(KEY, CACHE, None, due()).stored
    assert stack.waiting_bytes == CACHE.nbytes
    assert not stack.flush(Deadline.after(0.05))
    assert not slow.contains(KEY, due())
    slow.gate.set()
    assert stack.flush(due())
    assert hit(slow)
    assert stack.waiting_bytes == 0
    stack.close()


def test_writes_that_find_no_room_to_wait_are_dropped_and_counted(memory: MemoryTier) -> None:
    slow = SlowTier()
    stack = TierStack([memory, slow], WriteMode.BACK, waiting_bytes=2 * CACHE.nbytes)
    for number in range(4):
        assert stack.put(ContentKey("default", f"{number:064x}"), CACHE, None, due()).stored
    assert stack.counts()["slow"].dropped_writes == 2
    slow.gate.set()
    assert stack.flush(due())
    assert slow.bytes_in_use(None, due()) == 2 * CACHE.nbytes
    stack.close()


def test_write_through_stores_in_every_tier_at_once(memory: MemoryTier, disk: BoundedTier) -> None:
    stack = TierStack([memory, disk])
    stack.put(KEY, CACHE, None, due())
    assert hit(memory)
    assert hit(disk)
    assert stack.bytes_in_use(None, due()) > 2 * CACHE.nbytes
    assert stack.delete(KEY, due())
    assert not hit(memory)
    assert not hit(disk)
    assert stack.get(KEY, CACHE.fingerprint, due()) == Miss(MissReason.ABSENT)
    stack.close()


def test_a_dead_tier_costs_neither_puts_nor_gets(memory: MemoryTier) -> None:
    stack = TierStack([DeadTier(), memory])
    assert stack.put(KEY, CACHE, None, due()).stored
    assert hit(stack)
    assert stack.contains(KEY, due())
    assert stack.bytes_in_use(None, due()) == CACHE.nbytes
    # nobody knows what the dead one holds
    assert not stack.delete(KEY, due())
    assert stack.get(KEY, CACHE.fingerprint, due()) == Miss(MissReason.UNAVAILABLE)
    assert stack.counts()["dead"].puts == {PutStatus.UNAVAILABLE: 2}
    stack.close()


def test_a_put_that_no_tier_stores_returns_the_nearest_answer() -> None:
    stack = TierStack([MemoryTier(Budget(1)), DeadTier()])
    assert stack.put(KEY, CACHE, None, due()).status is PutStatus.FULL
    stack.close()


def test_the_most_telling_miss_is_given(memory: MemoryTier, clock: Clock) -> None:
    stack = TierStack([DeadTier(), memory], clock=clock)
    memory.put(KEY, CACHE, 5, due())
    clock.advance(6)
    assert stack.get(KEY, CACHE.fingerprint, due()) == Miss(MissReason.EXPIRED)
    stack.close()


def test_tiers_need_names_of_their_own(memory: MemoryTier) -> None:
    for tiers in ([], [memory, memory]):
        with pytest.raises(InvalidParameter):
            TierStack(tiers)


class FaultyTier(MemoryTier):
    """A memory tier whose gets fail with `error` if it is set."""

    error: MissReason | None = None

    def get(self, key: ContentKey, expected: Expected, deadline: Deadline) -> Lookup:
        return Miss(self.error, "broken") if self.error else super().get(key, expected, deadline)


def test_a_fault_is_reported_when_it_begins_and_when_it_ends() -> None:
    reports: list[tuple[str, str | None]] = []
    tier = FaultyTier(Budget(1 << 20), name="faulty")
    stack = TierStack([tier], on_fault=lambda *fault: reports.append(fault))
    for error, expected in (
        (None, []),
        (MissReason.UNAVAILABLE, [("faulty", "broken")]),
        # late is neither well nor broken
        (MissReason.TIMEOUT, [("faulty", "broken")]),
        (MissReason.UNAVAILABLE, [("faulty", "broken")]),
        (MissReason.ABSENT, [("faulty", "broken"), ("faulty", None)]),
        (MissReason.TIMEOUT, [("faulty", "broken"), ("faulty", None)]),
    ):
        tier.error = error
        stack.get(KEY, None, due())
        assert reports == expected, error
    stack.close()


def test_a_put_that_fails_is_a_fault() -> None:
    reports: list[tuple[str, str | None]] = []
    stack = TierStack([DeadTier()], on_fault=lambda *fault: reports.append(fault))
    stack.put(KEY, CACHE, 60.0, due())
    stack.put(KEY, CACHE, 60.0, due())
    stack.close()
    assert reports == [("dead", "")]

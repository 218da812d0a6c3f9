"""A tier that hangs holds nobody past the deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from kvstore.cache import CompactCache
from kvstore.errors import InvalidParameter
from kvstore.tiers.base import STORED, Expected, Hit, Lookup, MissReason, PutResult, PutStatus
from kvstore.tiers.bounded import BoundedTier
from kvstore.tiers.content_key import ContentKey
from kvstore.tiers.deadline import Deadline
from tests.kvstore.wire.caches import two_layers

CACHE, _ = two_layers()
KEY = ContentKey.of(CACHE.fingerprint)
SHORT = 0.1
# what a busy machine may add
SLACK = 1.0


class HangingTier:
    """A tier whose every call waits until it is let go."""

    name = "hanging"

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.error: Exception | None = None

    def _wait(self) -> None:
        assert self.gate.wait(30)
        if self.error is not None:
            raise self.error

    def put(
        self, key: ContentKey, cache: CompactCache, lifetime_seconds: float | None, by: Deadline
    ) -> PutResult:
        self._wait()
        return STORED

    def get(self, key: ContentKey, expected: Expected, by: Deadline) -> Lookup:
        self._wait()
        return Hit(CACHE)

    def delete(self, key: ContentKey, by: Deadline) -> bool:
        self._wait()
        return True

    def contains(self, key: ContentKey, by: Deadline) -> bool:
        self._wait()
        return True

    def bytes_in_use(self, namespace: str | None, by: Deadline) -> int:
        self._wait()
        return 7


@pytest.fixture
def hanging() -> Iterator[HangingTier]:
    tier = HangingTier()
    yield tier
    tier.gate.set()


@pytest.fixture
def bounded(hanging: HangingTier) -> Iterator[BoundedTier]:
    tier = BoundedTier(hanging, workers=2)
    yield tier
    tier.close()


def answers(tier: BoundedTier, seconds: float) -> list[object]:
    """Return the answer to each kind of call, one call after another."""
    found = tier.get(KEY, CACHE.fingerprint, Deadline.after(seconds))
    return [
        found if isinstance(found, Hit) else found.reason,
        tier.put(KEY, CACHE, None, Deadline.after(seconds)).status,
        tier.delete(KEY, Deadline.after(seconds)),
        tier.contains(KEY, Deadline.after(seconds)),
        tier.bytes_in_use(None, Deadline.after(seconds)),
    ]


NOTHING = [MissReason.UNAVAILABLE, PutStatus.UNAVAILABLE, False, False, None]


def test_calls_time_out_and_then_fail_at_once_until_a_worker_is_free(
    hanging: HangingTier, bounded: BoundedTier
) -> None:
    began = time.monotonic()
    first = answers(bounded, SHORT)
    # two workers, so two calls wait for their deadline; the others find none free
    assert time.monotonic() - began < 2 * SHORT + SLACK
    assert first == [MissReason.TIMEOUT, PutStatus.TIMEOUT, *NOTHING[2:]]
    began = time.monotonic()
    assert answers(bounded, 60) == NOTHING
    assert time.monotonic() - began < SLACK
    hanging.gate.set()
    time.sleep(SHORT)
    found = answers(bounded, 10)
    assert isinstance(found[0], Hit)
    assert found[1:] == [PutStatus.STORED, True, True, 7]


def test_a_call_that_only_queued_holds_no_worker(
    hanging: HangingTier, bounded: BoundedTier
) -> None:
    patient = [
        threading.Thread(target=bounded.get, args=(KEY, CACHE.fingerprint, Deadline.after(20)))
        for _ in range(2)
    ]
    for thread in patient:
        thread.start()
    time.sleep(SHORT)
    # both workers are busy with calls whose callers still wait
    assert bounded.get(KEY, CACHE.fingerprint, Deadline.after(SHORT)).reason is MissReason.TIMEOUT
    hanging.gate.set()
    for thread in patient:
        thread.join()
    assert isinstance(bounded.get(KEY, CACHE.fingerprint, Deadline.after(10)), Hit)


def test_what_a_tier_raises_is_part_of_the_answer(
    hanging: HangingTier, bounded: BoundedTier
) -> None:
    hanging.gate.set()
    hanging.error = RuntimeError("a client library's own fault")
    assert answers(bounded, 10) == NOTHING
    hanging.error = TimeoutError()
    assert answers(bounded, 10) == [MissReason.TIMEOUT, PutStatus.TIMEOUT, False, False, None]
    # none of them held a worker
    hanging.error = None
    assert isinstance(bounded.get(KEY, CACHE.fingerprint, Deadline.after(10)), Hit)


def test_a_bad_cache_is_still_its_callers_fault(hanging: HangingTier, bounded: BoundedTier) -> None:
    hanging.gate.set()
    hanging.error = InvalidParameter("cache", "bad")
    with pytest.raises(InvalidParameter):
        bounded.put(KEY, CACHE, None, Deadline.after(10))


def test_there_must_be_a_worker(hanging: HangingTier) -> None:
    with pytest.raises(InvalidParameter):
        BoundedTier(hanging, workers=0)

"""The ledger against a slow, obvious model of the same rules."""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.errors import InvalidParameter
from kvstore.tiers.base import MissReason, PutStatus
from kvstore.tiers.content_key import ContentKey
from kvstore.tiers.ledger import Budget, Entry, Ledger

BUDGET = Budget(100, {"small": 40})
KEYS = tuple(ContentKey(space, f"{n:064x}") for space in ("small", "large") for n in range(4))
# none of them is too large to be expired, evicted or refused in some order
SIZES = st.integers(0, 60)
# what, of which key, of how many bytes, for how long
Step: TypeAlias = tuple[str, ContentKey, int, float | None]


@dataclasses.dataclass
class SlowLedger:
    """Lists and loops: entries in order of use, recomputed sums."""

    entries: list[Entry] = dataclasses.field(default_factory=list)
    pins: list[ContentKey] = dataclasses.field(default_factory=list)
    gone: dict[ContentKey, MissReason] = dataclasses.field(default_factory=dict)

    def drop(self, entry: Entry, reason: MissReason) -> None:
        self.entries.remove(entry)
        self.pins = [key for key in self.pins if key != entry.key]
        self.gone[entry.key] = reason

    def expire(self, now: float) -> None:
        for entry in list(self.entries):
            if entry.expires_at is not None and entry.expires_at <= now:
                self.drop(entry, MissReason.EXPIRED)

    def yielded(self, own: str, asked: int, counted: list[Entry]) -> list[Entry]:
        """Return what the namespace with most bytes may lose, what goes first in front."""
        spaces = {key.namespace for key in KEYS}
        held = {s: sum(e.nbytes for e in counted if e.key.namespace == s) for s in spaces}
        held[own] += asked
        most = own if held[own] == max(held.values()) else max(spaces, key=lambda s: held[s])
        there = [e for e in counted if e.key.namespace == most]
        free = [e for e in there if e.key not in self.pins]
        return free if most == own else free + [e for e in there if e.key in self.pins]

    def admit(self, entry: Entry, now: float) -> bool:
        self.expire(now)
        others = [e for e in self.entries if e.key != entry.key]
        victims: list[Entry] = []
        own = entry.key.namespace
        while True:
            counted = [e for e in others if e.key.namespace == own and e not in victims]
            if sum(e.nbytes for e in counted) + entry.nbytes <= BUDGET.quota_of(own):
                break
            free = [e for e in counted if e.key not in self.pins]
            if not free:
                return False
            victims.append(free[0])
        while True:
            counted = [e for e in others if e not in victims]
            if sum(e.nbytes for e in counted) + entry.nbytes <= BUDGET.total_bytes:
                break
            free = self.yielded(own, entry.nbytes, counted)
            if not free:
                return False
            victims.append(free[0])
        for victim in victims:
            self.drop(victim, MissReason.EVICTED)
        self.entries = [e for e in self.entries if e.key != entry.key] + [entry]
        self.gone.pop(entry.key, None)
        return True


@st.composite
def steps(draw: st.DrawFn) -> Step:
    what = draw(st.sampled_from(("admit", "admit", "admit", "touch", "pin", "unpin", "remove")))
    lifetime = draw(st.none() | st.integers(1, 9).map(float))
    return what, draw(st.sampled_from(KEYS)), draw(SIZES), lifetime


def apply(ledger: Ledger, slow: SlowLedger, step: Step, now: int) -> None:
    """One step on both, which must answer alike."""
    what, key, nbytes, lifetime = step
    held = next((e for e in slow.entries if e.key == key), None)
    if what == "admit":
        entry = Entry(key, nbytes, None if lifetime is None else now + lifetime)
        status, _ = ledger.admit(entry, now)
        assert (status is PutStatus.STORED) == slow.admit(entry, now)
    elif what == "touch" and held is not None:
        ledger.touch(key)
        slow.entries = [e for e in slow.entries if e.key != key] + [held]
    elif what == "pin":
        alive = held is not None and not held.expired(now)
        assert ledger.pin(key, now) == alive
        slow.pins += [key] if alive else []
    elif what == "unpin":
        ledger.unpin(key)
        if key in slow.pins:
            slow.pins.remove(key)
    elif what == "remove":
        assert (ledger.remove(key) is None) == (held is None)
        if held is not None:
            slow.drop(held, MissReason.ABSENT)


@settings(max_examples=150, deadline=None)
@given(st.lists(steps(), max_size=40))
def test_the_ledger_equals_a_brute_force_ledger(
    script: list[Step],
) -> None:
    ledger, slow = Ledger(BUDGET), SlowLedger()
    for now, step in enumerate(script):
        apply(ledger, slow, step, now)
        for space in (None, "small", "large"):
            counted = [e.nbytes for e in slow.entries if space in (None, e.key.namespace)]
            assert ledger.bytes_in_use(space) == sum(counted)
        for other in KEYS:
            found = next((e for e in slow.entries if e.key == other and not e.expired(now)), None)
            assert ledger.peek(other, now) == found
            if all(e.key != other for e in slow.entries):
                assert ledger.why_gone(other) == slow.gone.get(other, MissReason.ABSENT)


def test_a_refused_entry_leaves_everything_in_place() -> None:
    ledger = Ledger(BUDGET)
    ledger.admit(Entry(KEYS[0], 30, None), 0)
    ledger.admit(Entry(KEYS[4], 50, None), 0)
    assert ledger.pin(KEYS[0], 0)
    for entry, status in (
        (Entry(KEYS[1], 41, None), PutStatus.OVER_QUOTA),
        (Entry(KEYS[1], 11, None), PutStatus.OVER_QUOTA),
        (Entry(KEYS[5], 101, None), PutStatus.FULL),
        (Entry(KEYS[5], 71, None), PutStatus.FULL),
    ):
        assert ledger.admit(entry, 0) == (status, [])
        assert ledger.bytes_in_use() == 80
    ledger.unpin(KEYS[0])
    assert ledger.admit(Entry(KEYS[1], 11, None), 0)[0] is PutStatus.STORED


def test_the_memory_of_what_is_gone_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.tiers.ledger._REMEMBERED_KEYS", 2)
    ledger = Ledger(Budget(1))
    for key in KEYS[:4]:
        ledger.admit(Entry(key, 1, None), 0)
    reasons = [ledger.why_gone(key) for key in KEYS[:3]]
    assert reasons == [MissReason.ABSENT, MissReason.EVICTED, MissReason.EVICTED]
    assert ledger.evictions == 3


@pytest.mark.parametrize("budget", [(-1, {}), (1, {"a": -1})])
def test_negative_budgets_are_refused(budget: tuple[int, dict[str, int]]) -> None:
    with pytest.raises(InvalidParameter):
        Budget(*budget)


def test_a_namespace_within_its_share_loses_nothing_to_one_that_floods() -> None:
    ledger = Ledger(Budget(100))
    few, many = KEYS[0], [ContentKey("large", f"{n:064x}") for n in range(50)]
    # the least recently used of all
    ledger.admit(Entry(few, 30, None), 0)
    for key in many:
        assert ledger.admit(Entry(key, 10, None), 0)[0] is PutStatus.STORED
    assert ledger.peek(few, 0) is not None
    assert ledger.bytes_in_use("large") == 70


def test_pins_of_a_namespace_beyond_its_share_do_not_hold_against_another() -> None:
    ledger = Ledger(Budget(100))
    many = [ContentKey("large", f"{n:064x}") for n in range(10)]
    for key in many:
        ledger.admit(Entry(key, 10, None), 0)
        ledger.pin(key, 0)
    assert ledger.admit(Entry(ContentKey("large", "f" * 64), 10, None), 0) == (PutStatus.FULL, [])
    for number in range(6):
        status, gone = ledger.admit(Entry(ContentKey("small", f"{number:064x}"), 10, None), 0)
        if number < 5:
            assert (status, [entry.key for entry in gone]) == (PutStatus.STORED, [many[number]])
    # half of the budget each
    assert ledger.bytes_in_use("large") == ledger.bytes_in_use("small") == 50

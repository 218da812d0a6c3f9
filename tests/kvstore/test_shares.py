"""The rule of shares: bounded, work-conserving, and a tenant within its share yields nothing."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from kvstore.shares import Shares, Turns, who_yields

_TENANTS = ("a", "b", "c", "d")
# a tenant, and whether it asks for one more or gives one back
_STEPS = st.lists(st.tuples(st.sampled_from(_TENANTS), st.booleans()), max_size=200)


@given(capacity=st.integers(1, 12), steps=_STEPS)
def test_places_are_bounded_all_given_out_and_taken_from_the_largest_alone(
    capacity: int, steps: list[tuple[str, bool]]
) -> None:
    shares, held = Shares(capacity), Counter[str]()
    for tenant, asks in steps:
        if not asks:
            if held[tenant]:
                shares.give_back(tenant)
                held[tenant] -= 1
            continue
        others = [name for name in _TENANTS if name != tenant and held[name]]
        share = capacity // (len(others) + 1)
        yielding = shares.who_yields(tenant)
        # work-conserving: whoever asks gets what is free, also all of it
        assert (yielding is None) == (held.total() < capacity)
        if yielding == tenant:
            # no starvation: a tenant below its share is never refused
            assert held[tenant] >= share
            continue
        if yielding is not None:
            # a tenant within its share never gives anything up
            assert held[yielding] > share
            assert held[yielding] > held[tenant] + 1
            shares.give_back(yielding)
            held[yielding] -= 1
        shares.take(tenant)
        held[tenant] += 1
        assert shares.total == held.total() <= capacity
        assert shares.largest == max(held.values())
    assert {name: shares.held(name) for name in _TENANTS} == {name: held[name] for name in _TENANTS}
    assert shares.tenants == sum(1 for count in held.values() if count)


@given(
    capacity=st.integers(10, 100),
    asks=st.lists(st.tuples(st.sampled_from(_TENANTS), st.integers(1, 10)), max_size=60),
)
def test_bytes_of_any_size_leave_every_tenant_its_share(
    capacity: int, asks: list[tuple[str, int]]
) -> None:
    shares, things = Shares(capacity), {name: list[int]() for name in _TENANTS}
    for tenant, size in asks:
        active = {name for name in _TENANTS if things[name]} | {tenant}
        share = capacity / len(active)
        while (yielding := shares.who_yields(tenant, size)) is not None:
            held = {name: sum(sizes) for name, sizes in things.items()}
            assert held[yielding] > share or yielding == tenant
            if yielding == tenant:
                assert held[tenant] + size > share
                break
            # the oldest goes, whole: its tenant may fall below its share by this one
            shares.give_back(yielding, things[yielding].pop(0))
        else:
            shares.take(tenant, size)
            things[tenant].append(size)
        assert shares.total == sum(map(sum, things.values())) <= capacity


def test_a_tie_is_decided_against_the_tenant_that_asks() -> None:
    assert who_yields({"a": 3, "b": 2}, "b", 1) == "b"
    assert who_yields({"a": 4, "b": 2}, "b", 1) == "a"
    assert who_yields({"a": 4, "b": 2}, "a", 1) == "a"
    assert who_yields({}, "a", 1) == "a"


@given(
    costs=st.fixed_dictionaries(
        {name: st.lists(st.floats(0.1, 10), min_size=1, max_size=40) for name in _TENANTS}
    )
)
def test_tenants_that_wait_use_equally_much_but_for_one_turn(
    costs: dict[str, list[float]],
) -> None:
    turns, used = Turns(), dict.fromkeys(_TENANTS, 0.0)
    left = {name: list(sizes) for name, sizes in costs.items()}
    while all(left.values()):
        tenant = turns.order(_TENANTS)[0]
        turns.begin(tenant)
        cost = left[tenant].pop(0)
        turns.charge(tenant, cost)
        used[tenant] += cost
        assert max(used.values()) - min(used.values()) <= 10 + 1e-6


@given(idle_turns=st.integers(1, 50))
def test_a_tenant_that_was_away_saves_up_no_turns(idle_turns: int) -> None:
    turns = Turns()
    for _ in range(idle_turns):
        turns.begin("busy")
        turns.charge("busy", 1.0)
    order = []
    for _ in range(6):
        tenant = turns.order(("busy", "back"))[0]
        turns.begin(tenant)
        turns.charge(tenant, 1.0)
        order.append(tenant)
    assert 3 <= order.count("back") <= 4

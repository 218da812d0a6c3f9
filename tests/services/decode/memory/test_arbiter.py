"""Order of arbiter, of eviction and of waiting when the pool is full."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import torch
from prometheus_client import REGISTRY

from headwise import Overloaded
from kvstore.cache import LayerShape
from kvstore.errors import PoolExhausted
from kvstore.pool import PageCount, PagePool, SequencePages
from services.decode.memory.arbiter import MemoryArbiter
from tests.services.decode.memory.arbiters import new_arbiter

_SHAPES = (LayerShape(1, 2, 4), LayerShape(2, 4, 4))


@pytest.fixture
def pool() -> PagePool:
    return PagePool(_SHAPES, pages=30, page_rows=8, dtype=torch.float32)


def _room(pool: PagePool, pages: int) -> Callable[[], SequencePages]:
    return lambda: pool.open(0, PageCount(pages, pages))


def _leave(arbiter: MemoryArbiter[Any], pages: SequencePages) -> None:
    pages.release()
    arbiter.release_answers()


async def test_released_pages_go_to_the_first_waiter(pool: PagePool) -> None:
    arbiter = new_arbiter(pool)
    first = await arbiter.admit(1, None, _room(pool, 25))
    waiting = asyncio.create_task(arbiter.admit(1, None, _room(pool, 10)))
    await asyncio.sleep(0.01)
    assert (arbiter.sequences, arbiter.queued, waiting.done()) == (1, 1, False)
    _leave(arbiter, first)
    second = await waiting
    assert (arbiter.sequences, arbiter.queued, pool.free_pages) == (1, 0, 20)
    _leave(arbiter, second)
    assert (pool.free_pages, arbiter.sequences) == (30, 0)


async def test_the_nearest_deadline_comes_first(pool: PagePool) -> None:
    arbiter = new_arbiter(pool, sequences=1)
    running = await arbiter.admit(1, None, _room(pool, 1))
    order: list[str] = []

    async def ask(name: str, seconds: float | None) -> None:
        pages = await arbiter.admit(1, seconds, _room(pool, 1))
        order.append(name)
        _leave(arbiter, pages)

    tasks = [
        asyncio.create_task(ask(name, seconds))
        for name, seconds in (("patient", None), ("late", 30.0), ("soon", 5.0), ("never", 900.0))
    ]
    await asyncio.sleep(0.01)
    _leave(arbiter, running)
    await asyncio.gather(*tasks)
    assert order == ["soon", "late", "patient", "never"]


async def test_a_large_request_at_the_head_is_not_overtaken(pool: PagePool) -> None:
    arbiter = new_arbiter(pool)
    running = await arbiter.admit(1, None, _room(pool, 20))
    large = asyncio.create_task(arbiter.admit(1, 5.0, _room(pool, 25)))
    small = asyncio.create_task(arbiter.admit(1, 6.0, _room(pool, 1)))
    await asyncio.sleep(0.01)
    assert not small.done()
    _leave(arbiter, running)
    await asyncio.gather(large, small)


async def test_a_full_line_refuses_with_a_retry_delay(pool: PagePool) -> None:
    arbiter = new_arbiter(pool, sequences=1, queued=1)
    arbiter.require_place()
    running = await arbiter.admit(1, None, _room(pool, 1))
    waiting = asyncio.create_task(arbiter.admit(1, None, _room(pool, 1)))
    await asyncio.sleep(0.01)
    with pytest.raises(Overloaded) as caught:
        arbiter.require_place()
    assert caught.value.reason == "DECODE_FULL"
    assert caught.value.retry_after_seconds
    with pytest.raises(Overloaded):
        await arbiter.admit(1, None, _room(pool, 1))
    _leave(arbiter, running)
    _leave(arbiter, await waiting)


async def test_without_a_line_a_generation_without_pages_is_refused(pool: PagePool) -> None:
    arbiter = new_arbiter(pool, queued=0)
    await arbiter.admit(1, None, _room(pool, 30))
    with pytest.raises(Overloaded):
        await arbiter.admit(1, None, _room(pool, 1))
    assert (arbiter.queued, arbiter.sequences) == (0, 1)


async def test_a_cancelled_waiter_leaves_nothing_behind(pool: PagePool) -> None:
    arbiter = new_arbiter(pool, sequences=1)
    running = await arbiter.admit(1, None, _room(pool, 1))
    waiting = asyncio.create_task(arbiter.admit(1, None, _room(pool, 1)))
    lucky = asyncio.create_task(arbiter.admit(1, None, _room(pool, 1)))
    await asyncio.sleep(0.01)
    waiting.cancel()
    # given its place and cancelled within one turn of the loop
    _leave(arbiter, running)
    lucky.cancel()
    for task in (waiting, lucky):
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (arbiter.sequences, arbiter.queued, pool.free_pages) == (0, 0, 30)


async def test_several_answers_count_as_several_sequences(pool: PagePool) -> None:
    arbiter = new_arbiter(pool, sequences=4)
    pages = await arbiter.admit(3, None, _room(pool, 1))
    waiting = asyncio.create_task(arbiter.admit(2, None, _room(pool, 1)))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    pages.release()
    arbiter.release_answers()
    await waiting


class _Idle:
    """Idle caches of ten pages each; the names of evicted ones are added to `evicted`."""

    def __init__(self, pool: PagePool, names: list[str], evicted: list[str]) -> None:
        self._caches = [(name, pool.open(0, PageCount(10, 10))) for name in names]
        self._evicted = evicted

    def evict(self, owner: str = "") -> bool:
        if not self._caches:
            return False
        name, pages = self._caches.pop(0)
        self._evicted.append(name)
        pages.release()
        return True


async def test_resident_caches_are_evicted_before_sessions_and_no_more_than_needed(
    pool: PagePool,
) -> None:
    evicted: list[str] = []
    caches, sessions = _Idle(pool, ["cache"], evicted), _Idle(pool, ["old", "new"], evicted)
    arbiter = new_arbiter(pool, resident_caches=caches, sessions=sessions)
    pages = await arbiter.admit(1, None, _room(pool, 20))
    assert evicted == ["cache", "old"]
    _leave(arbiter, pages)


class Preempted:
    """A sequence of a tenant in host memory."""

    def __init__(self, owner: str = "") -> None:
        self.owner = owner
        self.swapped_bytes = 0


async def test_preempted_sequences_come_before_new_generations(pool: PagePool) -> None:
    arbiter = new_arbiter(pool)
    arbiter.preempted.append(Preempted())
    waiting = asyncio.create_task(arbiter.admit(1, None, _room(pool, 10)))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    arbiter.preempted.clear()
    arbiter.advance()
    _leave(arbiter, await waiting)


async def test_an_arriving_cache_waits_for_pages_until_its_timeout(pool: PagePool) -> None:
    arbiter = new_arbiter(pool)
    running = await arbiter.admit(1, None, _room(pool, 28))
    arriving = await arbiter.admit(1, None, _room(pool, 1))
    claim = asyncio.create_task(arbiter.reserve_for_arrival(arriving, PageCount(5, 5)))
    await asyncio.sleep(0.01)
    assert not claim.done()
    _leave(arbiter, running)
    await claim
    assert arriving.reservation.unused == PageCount(5, 5)
    with pytest.raises(Overloaded) as caught:
        await arbiter.reserve_for_arrival(arriving, PageCount(31, 31))
    assert (caught.value.reason, pool.free_pages) == ("POOL_EXHAUSTED", 25)
    assert isinstance(caught.value.__cause__, PoolExhausted)


async def test_a_waiting_arrival_is_counted_once(
    pool: PagePool,
) -> None:
    def counted() -> float:
        return REGISTRY.get_sample_value("headwise_claims_waiting_total") or 0.0

    before, arbiter = counted(), new_arbiter(pool)
    running = await arbiter.admit(1, None, _room(pool, 28))
    arriving = await arbiter.admit(1, None, _room(pool, 1))
    claim = asyncio.create_task(arbiter.reserve_for_arrival(arriving, PageCount(5, 5)))
    for _ in range(4):
        await asyncio.sleep(0.01)
        arbiter.tick()
    assert not claim.done()
    _leave(arbiter, running)
    await claim
    # there is room for this one
    await arbiter.reserve_for_arrival(arriving, PageCount(6, 6))
    assert counted() == before + 1


async def test_an_error_of_opening_reaches_its_waiter_alone(pool: PagePool) -> None:
    arbiter = new_arbiter(pool)

    def fail() -> SequencePages:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        await arbiter.admit(1, None, fail)
    assert (arbiter.sequences, arbiter.queued) == (0, 0)


async def test_a_later_waiter_that_fits_is_admitted_if_nothing_runs(pool: PagePool) -> None:
    arbiter = new_arbiter(pool)
    # as of sessions that cannot be evicted, because their own turns stand in line
    held = pool.open(0, PageCount(20, 20))
    waiting = asyncio.create_task(arbiter.admit(1, 5.0, _room(pool, 15)))
    await asyncio.sleep(0.01)
    turn = await asyncio.wait_for(arbiter.admit(1, 50.0, _room(pool, 5)), 1.0)
    assert not waiting.done()
    held.release()
    _leave(arbiter, turn)
    _leave(arbiter, await asyncio.wait_for(waiting, 1.0))
    assert (pool.free_pages, arbiter.sequences, arbiter.queued) == (30, 0, 0)


async def test_the_first_waiter_is_not_overtaken_while_something_runs(pool: PagePool) -> None:
    arbiter = new_arbiter(pool)
    running = await arbiter.admit(1, None, _room(pool, 20))
    waiting = asyncio.create_task(arbiter.admit(1, 5.0, _room(pool, 15)))
    await asyncio.sleep(0.01)
    later = asyncio.create_task(arbiter.admit(1, 50.0, _room(pool, 5)))
    await asyncio.sleep(0.01)
    assert (waiting.done(), later.done()) == (False, False)
    _leave(arbiter, running)
    for task in (waiting, later):
        _leave(arbiter, await asyncio.wait_for(task, 1.0))


async def test_the_first_waiter_is_refused_if_nothing_can_free_pages(
    pool: PagePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    arbiter = new_arbiter(pool)
    monkeypatch.setattr("services.decode.memory.arbiter._STARVED_SECONDS", 0.05)
    held = pool.open(0, PageCount(28, 28))
    first, second = (asyncio.create_task(arbiter.admit(1, 9.0, _room(pool, 5))) for _ in "12")
    await asyncio.sleep(0.01)
    arbiter.tick()
    assert (first.done(), second.done()) == (False, False)
    await asyncio.sleep(0.06)
    arbiter.tick()
    with pytest.raises(Overloaded) as caught:
        await first
    assert (caught.value.reason, second.done()) == ("POOL_EXHAUSTED", False)
    # whoever was refused may have held what the next one needs
    held.release()
    arbiter.tick()
    _leave(arbiter, await asyncio.wait_for(second, 1.0))


async def _admit(arbiter: MemoryArbiter[Any], pool: PagePool, tenant: str) -> SequencePages:
    return await arbiter.admit(1, None, lambda: pool.open(0, PageCount(1, 1), owner=tenant), tenant)


async def test_the_tenant_with_fewest_sequences_comes_first_whatever_the_deadlines(
    pool: PagePool,
) -> None:
    arbiter, order = new_arbiter(pool, sequences=2), list[str]()
    running = [await _admit(arbiter, pool, "many") for _ in "12"]

    async def ask(tenant: str, seconds: float) -> None:
        await arbiter.admit(1, seconds, _room(pool, 1), tenant)
        order.append(tenant)

    tasks = [asyncio.create_task(ask("many", 1.0 + n)) for n in range(3)]
    tasks.append(asyncio.create_task(ask("few", 900.0)))
    await asyncio.sleep(0.01)
    running[0].release()
    arbiter.release_answers(tenant="many")
    await asyncio.sleep(0.01)
    assert order == ["few"]
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_in_a_full_line_the_tenant_with_most_places_makes_room(pool: PagePool) -> None:
    arbiter = new_arbiter(pool, sequences=1, queued=3)
    await _admit(arbiter, pool, "many")
    flood = [asyncio.create_task(_admit(arbiter, pool, "many")) for _ in range(3)]
    await asyncio.sleep(0.01)
    with pytest.raises(Overloaded):
        arbiter.require_place("many")
    arbiter.require_place("few")
    other = asyncio.create_task(_admit(arbiter, pool, "few"))
    await asyncio.sleep(0.01)
    # the newest
    assert [task.done() for task in flood] == [False, False, True]
    with pytest.raises(Overloaded) as caught:
        await flood.pop()
    assert (caught.value.reason, other.done()) == ("DECODE_FULL", False)
    for task in (*flood, other):
        task.cancel()
    await asyncio.wait((*flood, other))
    assert arbiter.queued == 0


async def test_a_tenant_that_runs_fewer_does_not_wait_for_preempted_sequences_of_another(
    pool: PagePool,
) -> None:
    arbiter = new_arbiter(pool, sequences=3)
    for _ in range(3):
        await _admit(arbiter, pool, "many")
    other = asyncio.create_task(_admit(arbiter, pool, "few"))
    again = asyncio.create_task(_admit(arbiter, pool, "many"))
    await asyncio.sleep(0.01)
    # the engine moves one of them to host memory
    arbiter.preempted.append(Preempted("many"))
    arbiter.advance()
    await asyncio.wait_for(other, 1.0)
    await asyncio.sleep(0.01)
    assert not again.done()
    again.cancel()
    await asyncio.wait((again,))


async def test_idle_caches_of_a_tenant_within_its_share_stay(pool: PagePool) -> None:
    evicted: list[str] = []
    idle = OwnedIdle(pool, ["few", "many", "many"], evicted)
    arbiter = new_arbiter(pool, sessions=idle)

    async def ask(tenant: str, pages: int) -> None:
        need = PageCount(pages, pages)
        await arbiter.admit(1, None, lambda: pool.open(0, need, owner=tenant), tenant)

    await ask("few", 5)
    await ask("many", 5)
    assert evicted == ["many"]
    # both hold their half: the one that asks goes on with what it has
    await ask("many", 10)
    assert evicted == ["many", "many"]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(ask("many", 10), 0.05)
    assert evicted == ["many", "many"]


class OwnedIdle:
    """Idle caches of ten pages, each of a tenant; owners of evicted ones are added to `evicted`."""

    def __init__(self, pool: PagePool, owners: list[str], evicted: list[str]) -> None:
        self._caches = [pool.open(0, PageCount(10, 10), owner=owner) for owner in owners]
        self._evicted = evicted

    def evict(self, owner: str = "") -> bool:
        pages = next((one for one in self._caches if one.owner == owner), None)
        if pages is None:
            return False
        self._caches.remove(pages)
        self._evicted.append(owner)
        pages.release()
        return True

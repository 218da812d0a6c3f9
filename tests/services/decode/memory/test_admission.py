"""Who finds no room waits in a bounded line, the nearest deadline first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import torch
from prometheus_client import REGISTRY

from headwise import Overloaded
from kvstore.cache import LayerShape
from kvstore.errors import PoolExhausted
from kvstore.pool import PageCount, PagePool, SequencePages
from services.decode.memory.admission import Admission

_SHAPES = (LayerShape(1, 2, 4), LayerShape(2, 4, 4))


@pytest.fixture
def pool() -> PagePool:
    return PagePool(_SHAPES, pages=30, page_rows=8, dtype=torch.float32)


def _admission(
    *,
    sequences: int = 9,
    queued: int = 9,
    evict: Callable[[], bool] = lambda: False,
    preempted: Callable[[], int] = lambda: 0,
) -> Admission:
    return Admission(
        evict, preempted, max_sequences=sequences, max_queued=queued, claim_seconds=0.2
    )


def _room(pool: PagePool, pages: int) -> Callable[[], SequencePages]:
    return lambda: pool.open(0, PageCount(pages, pages))


def _leave(admission: Admission, pages: SequencePages) -> None:
    pages.release()
    admission.leave()


async def test_what_is_released_is_given_to_who_waits(pool: PagePool) -> None:
    admission = _admission()
    first = await admission.admit(1, None, _room(pool, 25))
    waiting = asyncio.create_task(admission.admit(1, None, _room(pool, 10)))
    await asyncio.sleep(0.01)
    assert (admission.sequences, admission.queued, waiting.done()) == (1, 1, False)
    _leave(admission, first)
    second = await waiting
    assert (admission.sequences, admission.queued, pool.free_pages) == (1, 0, 20)
    _leave(admission, second)
    assert (pool.free_pages, admission.sequences) == (30, 0)


async def test_the_nearest_deadline_comes_first(pool: PagePool) -> None:
    admission = _admission(sequences=1)
    running = await admission.admit(1, None, _room(pool, 1))
    order: list[str] = []

    async def ask(name: str, seconds: float | None) -> None:
        pages = await admission.admit(1, seconds, _room(pool, 1))
        order.append(name)
        _leave(admission, pages)

    tasks = [
        asyncio.create_task(ask(name, seconds))
        for name, seconds in (("patient", None), ("late", 30.0), ("soon", 5.0), ("never", 900.0))
    ]
    await asyncio.sleep(0.01)
    _leave(admission, running)
    await asyncio.gather(*tasks)
    assert order == ["soon", "late", "patient", "never"]


async def test_a_large_request_at_the_head_is_not_overtaken(pool: PagePool) -> None:
    admission = _admission()
    running = await admission.admit(1, None, _room(pool, 20))
    large = asyncio.create_task(admission.admit(1, 5.0, _room(pool, 25)))
    small = asyncio.create_task(admission.admit(1, 6.0, _room(pool, 1)))
    await asyncio.sleep(0.01)
    assert not small.done()
    _leave(admission, running)
    await asyncio.gather(large, small)


async def test_a_full_line_is_told_when_to_come_again(pool: PagePool) -> None:
    admission = _admission(sequences=1, queued=1)
    admission.require_place()
    running = await admission.admit(1, None, _room(pool, 1))
    waiting = asyncio.create_task(admission.admit(1, None, _room(pool, 1)))
    await asyncio.sleep(0.01)
    with pytest.raises(Overloaded) as caught:
        admission.require_place()
    assert caught.value.reason == "DECODE_FULL"
    assert caught.value.retry_after_seconds
    with pytest.raises(Overloaded):
        await admission.admit(1, None, _room(pool, 1))
    _leave(admission, running)
    _leave(admission, await waiting)


async def test_without_a_line_who_finds_no_pages_is_refused(pool: PagePool) -> None:
    admission = _admission(queued=0)
    await admission.admit(1, None, _room(pool, 30))
    with pytest.raises(Overloaded):
        await admission.admit(1, None, _room(pool, 1))
    assert (admission.queued, admission.sequences) == (0, 1)


async def test_who_gives_up_leaves_the_line_and_nothing_behind(pool: PagePool) -> None:
    admission = _admission(sequences=1)
    running = await admission.admit(1, None, _room(pool, 1))
    waiting = asyncio.create_task(admission.admit(1, None, _room(pool, 1)))
    lucky = asyncio.create_task(admission.admit(1, None, _room(pool, 1)))
    await asyncio.sleep(0.01)
    waiting.cancel()
    # given its place and cancelled within one turn of the loop
    _leave(admission, running)
    lucky.cancel()
    for task in (waiting, lucky):
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (admission.sequences, admission.queued, pool.free_pages) == (0, 0, 30)


async def test_several_answers_need_as_many_places(pool: PagePool) -> None:
    admission = _admission(sequences=4)
    pages = await admission.admit(3, None, _room(pool, 1))
    waiting = asyncio.create_task(admission.admit(2, None, _room(pool, 1)))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    pages.release()
    admission.leave()
    await waiting


async def test_idle_sessions_give_way_and_preempted_sequences_come_first(pool: PagePool) -> None:
    sessions = [pool.open(0, PageCount(15, 15)) for _ in range(2)]

    def evict() -> bool:
        if sessions:
            sessions.pop().release()
            return True
        return False

    preempted = 1
    admission = _admission(evict=evict, preempted=lambda: preempted)
    waiting = asyncio.create_task(admission.admit(1, None, _room(pool, 10)))
    await asyncio.sleep(0.01)
    assert (len(sessions), waiting.done()) == (2, False)
    preempted = 0
    admission.advance()
    await waiting
    assert len(sessions) == 1


async def test_an_arriving_cache_waits_for_room_and_no_longer_than_it_may(pool: PagePool) -> None:
    admission = _admission()
    running = await admission.admit(1, None, _room(pool, 28))
    arriving = await admission.admit(1, None, _room(pool, 1))
    claim = asyncio.create_task(admission.claim(arriving, PageCount(5, 5)))
    await asyncio.sleep(0.01)
    assert not claim.done()
    _leave(admission, running)
    await claim
    assert arriving.reservation.unused == PageCount(5, 5)
    with pytest.raises(Overloaded) as caught:
        await admission.claim(arriving, PageCount(31, 31))
    assert (caught.value.reason, pool.free_pages) == ("POOL_EXHAUSTED", 25)
    assert isinstance(caught.value.__cause__, PoolExhausted)


async def test_a_claim_that_is_held_up_is_counted_once_however_often_it_looks(
    pool: PagePool,
) -> None:
    def counted() -> float:
        return REGISTRY.get_sample_value("headwise_claims_waiting_total") or 0.0

    before, admission = counted(), _admission()
    running = await admission.admit(1, None, _room(pool, 28))
    arriving = await admission.admit(1, None, _room(pool, 1))
    claim = asyncio.create_task(admission.claim(arriving, PageCount(5, 5)))
    for _ in range(4):
        await asyncio.sleep(0.01)
        admission.tick()
    assert not claim.done()
    _leave(admission, running)
    await claim
    # there is room for this one
    await admission.claim(arriving, PageCount(6, 6))
    assert counted() == before + 1


async def test_an_error_of_opening_reaches_who_asked_and_no_one_else(pool: PagePool) -> None:
    admission = _admission()

    def fail() -> SequencePages:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        await admission.admit(1, None, fail)
    assert (admission.sequences, admission.queued) == (0, 0)


async def test_who_fits_goes_first_where_nothing_runs_that_could_make_room(pool: PagePool) -> None:
    admission = _admission()
    # as of sessions that cannot be evicted, because their own turns stand in line
    held = pool.open(0, PageCount(20, 20))
    waiting = asyncio.create_task(admission.admit(1, 5.0, _room(pool, 15)))
    await asyncio.sleep(0.01)
    turn = await asyncio.wait_for(admission.admit(1, 50.0, _room(pool, 5)), 1.0)
    assert not waiting.done()
    held.release()
    _leave(admission, turn)
    _leave(admission, await asyncio.wait_for(waiting, 1.0))
    assert (pool.free_pages, admission.sequences, admission.queued) == (30, 0, 0)


async def test_nobody_passes_who_is_next_while_something_runs(pool: PagePool) -> None:
    admission = _admission()
    running = await admission.admit(1, None, _room(pool, 20))
    waiting = asyncio.create_task(admission.admit(1, 5.0, _room(pool, 15)))
    await asyncio.sleep(0.01)
    later = asyncio.create_task(admission.admit(1, 50.0, _room(pool, 5)))
    await asyncio.sleep(0.01)
    assert (waiting.done(), later.done()) == (False, False)
    _leave(admission, running)
    for task in (waiting, later):
        _leave(admission, await asyncio.wait_for(task, 1.0))


async def test_a_line_that_nothing_can_move_is_refused_from_its_head(
    pool: PagePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    admission = _admission()
    monkeypatch.setattr("services.decode.memory.admission._STARVED_SECONDS", 0.05)
    held = pool.open(0, PageCount(28, 28))
    first, second = (asyncio.create_task(admission.admit(1, 9.0, _room(pool, 5))) for _ in "12")
    await asyncio.sleep(0.01)
    admission.tick()
    assert (first.done(), second.done()) == (False, False)
    await asyncio.sleep(0.06)
    admission.tick()
    with pytest.raises(Overloaded) as caught:
        await first
    assert (caught.value.reason, second.done()) == ("POOL_EXHAUSTED", False)
    # whoever was refused may have held what the next one needs
    held.release()
    admission.tick()
    _leave(admission, await asyncio.wait_for(second, 1.0))

"""ResidentCaches are loaded once, forked while they are borrowed, and go when nobody needs them."""

from __future__ import annotations

import asyncio

import pytest
import torch

from headwise.errors import NotFound
from headwise.v1 import cache_pb2
from kvstore.cache import LayerShape
from kvstore.pool import PageCount, PagePool, SequencePages
from services.decode.memory.resident_caches import ResidentCaches
from services.decode.report import TransferReport

_KEY = ("default", "a" * 64)
_OTHER = ("default", "b" * 64)
_STORED = cache_pb2.StoredCache(tokens=3)


class Loads:
    """Loads that wait to be let go, each with pages of its own."""

    def __init__(self) -> None:
        self.pool = PagePool((LayerShape(1, 1, 4),), pages=8, page_rows=1, dtype=torch.float32)
        self.begun = 0
        self.cancelled = 0
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> tuple[SequencePages, TransferReport]:
        self.begun += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error:
            raise self.error
        return self.pool.open(3, PageCount(1, 0)), TransferReport(context_tokens=3)


class Visits:
    """Tasks that borrow a context and hold it until let go."""

    def __init__(self, most: int = 1) -> None:
        self.contexts = ResidentCaches(max_caches=most, on_freed=lambda: None)
        self.loads = Loads()
        self.inside = 0
        self.gate = asyncio.Event()

    async def start(self, key: tuple[str, str] = _KEY) -> asyncio.Task[bool]:
        task = asyncio.create_task(self._visit(key))
        await asyncio.sleep(0.01)
        return task

    async def _visit(self, key: tuple[str, str]) -> bool:
        async with self.contexts.borrow(key, _STORED, self.loads) as (context, fresh):
            fork = context.pages.fork()
            self.inside += 1
            await self.gate.wait()
            fork.release()
            return fresh


async def test_many_wait_for_one_load_and_a_cancelled_waiter_does_not_end_it() -> None:
    visits = Visits()
    tasks = [await visits.start() for _ in range(4)]
    tasks[0].cancel()
    visits.loads.gate.set()
    visits.gate.set()
    fresh = await asyncio.gather(*tasks[1:])
    assert visits.loads.begun == 1
    # the one it was begun for has left
    assert fresh == [False, False, False]
    assert visits.contexts.evict()
    assert visits.loads.pool.sequences == 0


async def test_the_last_to_give_up_ends_the_load_and_the_next_begins_anew() -> None:
    visits = Visits()
    tasks = [await visits.start() for _ in range(3)]
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert (visits.loads.begun, visits.loads.cancelled) == (1, 1)
    visits.loads.gate.set()
    visits.gate.set()
    assert await (await visits.start())
    assert visits.loads.begun == 2


async def test_a_failed_load_reaches_all_waiters() -> None:
    visits = Visits()
    visits.loads.error = ValueError("no")
    tasks = [await visits.start() for _ in range(3)]
    visits.loads.gate.set()
    for task in tasks:
        with pytest.raises(ValueError, match="no"):
            await task
    visits.loads.error = None
    visits.gate.set()
    assert await (await visits.start())


async def test_the_lease_of_another_call_fails_no_call() -> None:
    visits, others = Visits(), Visits()
    others.contexts = visits.contexts
    visits.gate.set()
    others.gate.set()
    visits.loads.error = NotFound("released", "LEASE_RELEASED")
    first = await visits.start()
    joined = [await others.start() for _ in range(3)] + [await visits.start()]
    others.loads.gate.set()
    visits.loads.gate.set()
    with pytest.raises(NotFound):
        await first
    # one of the others has loaded it for all, those without a lease of their own included
    assert sorted(await asyncio.gather(*joined)) == [False, False, False, True]
    assert (visits.loads.begun, others.loads.begun) == (1, 1)
    assert visits.contexts.evict()
    assert others.loads.pool.sequences == 0


async def test_each_call_whose_lease_is_gone_is_told() -> None:
    visits = Visits()
    visits.loads.error = NotFound("released", "LEASE_RELEASED")
    tasks = [await visits.start() for _ in range(3)]
    visits.loads.gate.set()
    for task in tasks:
        with pytest.raises(NotFound):
            await task
    assert visits.loads.begun == 3


async def test_a_borrowed_cache_stays_until_it_is_given_back() -> None:
    visits = Visits(most=2)
    visits.loads.gate.set()
    first, second = await visits.start(), await visits.start(_OTHER)
    assert visits.inside == 2
    assert not visits.contexts.evict()
    visits.contexts.release(_KEY)
    assert len(visits.contexts) == 2
    visits.gate.set()
    await asyncio.gather(first, second)
    visits.contexts.expire()
    assert list(visits.contexts._contexts) == [_OTHER]
    visits.contexts.close()
    assert visits.loads.pool.sequences == 0
    assert visits.loads.pool.free_pages == 8


async def test_those_that_are_too_many_go_the_least_recently_used_first() -> None:
    visits = Visits(most=1)
    visits.loads.gate.set()
    visits.gate.set()
    for key in (_KEY, _OTHER):
        assert await (await visits.start(key))
    assert list(visits.contexts._contexts) == [_OTHER]
    assert not await (await visits.start(_OTHER))

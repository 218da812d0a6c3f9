"""One prompt is computed at a time; the queue is bounded and in order, and can be left."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from headwise import Overloaded
from services.prefill.sharing.prefill_queue import PrefillQueue


class Visitors:
    """Tasks that each take the queue slot and hold it until `release`."""

    def __init__(self, queue: PrefillQueue) -> None:
        self.inside: list[int] = []
        self.max_inside = 0
        self.waited: dict[int, float] = {}
        self._inside_now = 0
        self._queue = queue
        self._gates: dict[int, asyncio.Event] = {}

    async def start(self, number: int) -> asyncio.Task[None]:
        self._gates[number] = asyncio.Event()
        task = asyncio.create_task(self._visit(number))
        await asyncio.sleep(0.01)
        return task

    def release(self, number: int) -> None:
        self._gates[number].set()

    async def _visit(self, number: int) -> None:
        async with self._queue.slot() as waited:
            self.waited[number] = waited
            self.inside.append(number)
            self._inside_now += 1
            self.max_inside = max(self.max_inside, self._inside_now)
            await self._gates[number].wait()
            self._inside_now -= 1


async def test_slots_are_given_one_at_a_time_in_order_with_the_seconds_waited() -> None:
    visitors = Visitors(PrefillQueue(5))
    tasks = [await visitors.start(number) for number in range(3)]
    await asyncio.sleep(0.05)
    for number in range(3):
        visitors.release(number)
    await asyncio.gather(*tasks)
    assert visitors.inside == [0, 1, 2]
    assert visitors.max_inside == 1
    assert visitors.waited[0] < 0.05 <= visitors.waited[1]


@pytest.mark.parametrize("max_queued", [0, 1, 2])
async def test_a_full_queue_refuses_with_a_retry_delay(max_queued: int) -> None:
    visitors = Visitors(PrefillQueue(max_queued))
    tasks = [await visitors.start(number) for number in range(max_queued + 1)]
    with pytest.raises(Overloaded) as caught:
        await (await visitors.start(99))
    assert caught.value.reason == "QUEUE_FULL"
    assert caught.value.retry_after_seconds
    for number in range(max_queued + 1):
        visitors.release(number)
    await asyncio.gather(*tasks)


async def test_a_cancelled_wait_frees_its_place() -> None:
    visitors = Visitors(PrefillQueue(1))
    first = await visitors.start(0)
    cancelled = await visitors.start(1)
    cancelled.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await cancelled
    second = await visitors.start(2)
    visitors.release(0)
    visitors.release(2)
    await asyncio.gather(first, second)
    assert visitors.inside == [0, 2]


async def test_a_failure_frees_the_slot() -> None:
    queue = PrefillQueue(0)
    with pytest.raises(ArithmeticError):
        async with queue.slot():
            raise ArithmeticError
    async with asyncio.timeout(1), queue.slot():
        pass

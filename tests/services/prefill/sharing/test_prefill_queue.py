"""One prompt is computed at a time; the queue is bounded and in order, and can be left."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

from headwise import Overloaded
from services.prefill.compute.prefiller import PrefillStopped
from services.prefill.compute.stop_signal import StopSignal
from services.prefill.sharing.prefill_queue import PrefillQueue, QueueSlot
from services.prefill.sharing.unread_caches import UnreadCaches


def _queue(max_queued: int) -> PrefillQueue:
    return PrefillQueue(max_queued, UnreadCaches(1 << 20))


class Visitors:
    """Tasks that each take the queue slot and hold it until `release`."""

    def __init__(self, queue: PrefillQueue) -> None:
        self.inside: list[int] = []
        self.max_inside = 0
        self.waited: dict[int, float] = {}
        self._inside_now = 0
        self._queue = queue
        self._gates: dict[int, asyncio.Event] = {}

    async def start(self, number: int, tenant: str = "") -> asyncio.Task[None]:
        self._gates[number] = asyncio.Event()
        task = asyncio.create_task(self._visit(number, tenant))
        await asyncio.sleep(0.01)
        return task

    def release(self, number: int) -> None:
        self._gates[number].set()

    async def _visit(self, number: int, tenant: str) -> None:
        async with self._queue.slot(tenant) as slot:
            self.waited[number] = slot.waited_seconds
            self.inside.append(number)
            self._inside_now += 1
            self.max_inside = max(self.max_inside, self._inside_now)
            await self._gates[number].wait()
            self._inside_now -= 1


async def test_slots_are_given_one_at_a_time_in_order_with_the_seconds_waited() -> None:
    visitors = Visitors(_queue(5))
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
    visitors = Visitors(_queue(max_queued))
    tasks = [await visitors.start(number) for number in range(max_queued + 1)]
    with pytest.raises(Overloaded) as caught:
        await (await visitors.start(99))
    assert caught.value.reason == "QUEUE_FULL"
    assert caught.value.retry_after_seconds
    for number in range(max_queued + 1):
        visitors.release(number)
    await asyncio.gather(*tasks)


async def test_a_cancelled_wait_frees_its_place() -> None:
    visitors = Visitors(_queue(1))
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
    queue = _queue(0)
    with pytest.raises(ArithmeticError):
        async with queue.slot():
            raise ArithmeticError
    async with asyncio.timeout(1), queue.slot():
        pass


async def test_turns_alternate_between_tenants_and_the_line_of_one_is_in_order() -> None:
    visitors = Visitors(_queue(9))
    tenants = {0: "many", 1: "many", 2: "many", 3: "many", 10: "few", 11: "few", 20: "one"}
    tasks = [await visitors.start(number, tenant) for number, tenant in tenants.items()]
    for number in (0, 10, 20, 1, 11, 2, 3):
        visitors.release(number)
        await asyncio.sleep(0.02)
    await asyncio.gather(*tasks)
    assert visitors.inside[:3] == [0, 10, 20]
    assert [number for number in visitors.inside if number < 10] == [0, 1, 2, 3]
    assert set(visitors.inside[3:5]) == {1, 11}


async def test_in_a_full_queue_the_tenant_with_most_places_makes_room() -> None:
    visitors = Visitors(_queue(3))
    tasks = [await visitors.start(number, "many") for number in range(4)]
    other = await visitors.start(10, "few")
    # the newest of the tenant that had all places
    with pytest.raises(Overloaded) as caught:
        await tasks.pop()
    assert caught.value.reason == "QUEUE_FULL"
    # both would hold two of three places: the one that asks is refused
    with pytest.raises(Overloaded):
        await (await visitors.start(11, "few"))
    for number in (*range(3), 10):
        visitors.release(number)
    await asyncio.gather(*tasks, other)
    assert sorted(visitors.inside) == [0, 1, 2, 10]


async def test_a_long_prompt_gives_way_between_chunks_and_goes_on() -> None:
    queue, order = _queue(9), list[str]()
    began, other_waits = asyncio.Event(), threading.Event()
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:

        def compute(slot: QueueSlot) -> None:
            other_waits.wait()
            slot.give_way(StopSignal())
            order.append("long")

        async def long_prompt() -> None:
            async with queue.slot("many") as slot:
                began.set()
                await asyncio.to_thread(compute, slot)

        async def short_prompt() -> None:
            async with queue.slot("few"):
                order.append("short")

        tasks.create_task(long_prompt())
        await began.wait()
        tasks.create_task(short_prompt())
        await asyncio.sleep(0)
        other_waits.set()
    assert order == ["short", "long"]


async def test_a_prompt_that_gave_way_can_be_stopped() -> None:
    queue, stop = _queue(9), StopSignal()
    async with queue.slot("many") as slot:
        waiting = asyncio.Event()

        async def short_prompt() -> None:
            async with queue.slot("few"):
                stop.set()
                await waiting.wait()

        short = asyncio.create_task(short_prompt())
        await asyncio.sleep(0)
        with pytest.raises(PrefillStopped):
            await asyncio.to_thread(slot.give_way, stop)
        waiting.set()
        await short
    async with asyncio.timeout(1), queue.slot():
        pass

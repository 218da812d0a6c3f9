"""One prompt computes at a time; the line is bounded, in order, and left by who gives up."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from headwise import Overloaded
from services.prefill.sharing.prefill_queue import Turns


class Visitors:
    """Tasks that take a turn each and hold it until let go."""

    def __init__(self, turns: Turns) -> None:
        self.inside: list[int] = []
        self.most_inside = 0
        self.waited: dict[int, float] = {}
        self._inside_now = 0
        self._turns = turns
        self._gates: dict[int, asyncio.Event] = {}

    async def start(self, number: int) -> asyncio.Task[None]:
        self._gates[number] = asyncio.Event()
        task = asyncio.create_task(self._visit(number))
        await asyncio.sleep(0.01)
        return task

    def let_go(self, number: int) -> None:
        self._gates[number].set()

    async def _visit(self, number: int) -> None:
        async with self._turns.turn() as waited:
            self.waited[number] = waited
            self.inside.append(number)
            self._inside_now += 1
            self.most_inside = max(self.most_inside, self._inside_now)
            await self._gates[number].wait()
            self._inside_now -= 1


async def test_one_at_a_time_in_order_and_the_wait_is_told() -> None:
    visitors = Visitors(Turns(5))
    tasks = [await visitors.start(number) for number in range(3)]
    await asyncio.sleep(0.05)
    for number in range(3):
        visitors.let_go(number)
    await asyncio.gather(*tasks)
    assert visitors.inside == [0, 1, 2]
    assert visitors.most_inside == 1
    assert visitors.waited[0] < 0.05 <= visitors.waited[1]


@pytest.mark.parametrize("max_queued", [0, 1, 2])
async def test_a_full_line_turns_away_with_a_retry_delay(max_queued: int) -> None:
    visitors = Visitors(Turns(max_queued))
    tasks = [await visitors.start(number) for number in range(max_queued + 1)]
    with pytest.raises(Overloaded) as caught:
        await (await visitors.start(99))
    assert caught.value.reason == "QUEUE_FULL"
    assert caught.value.retry_after_seconds
    for number in range(max_queued + 1):
        visitors.let_go(number)
    await asyncio.gather(*tasks)


async def test_who_gives_up_waiting_frees_the_place() -> None:
    visitors = Visitors(Turns(1))
    first = await visitors.start(0)
    gone = await visitors.start(1)
    gone.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await gone
    second = await visitors.start(2)
    visitors.let_go(0)
    visitors.let_go(2)
    await asyncio.gather(first, second)
    assert visitors.inside == [0, 2]


async def test_a_turn_that_fails_is_over() -> None:
    turns = Turns(0)
    with pytest.raises(ArithmeticError):
        async with turns.turn():
            raise ArithmeticError
    async with asyncio.timeout(1), turns.turn():
        pass

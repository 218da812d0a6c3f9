"""Calls from other threads reach the loop in order, and few of them wake it."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable

import pytest

from services.decode.engine.loop_calls import LoopCalls


async def test_calls_of_many_threads_all_come_and_in_order() -> None:
    bell, seen = LoopCalls(asyncio.get_running_loop()), []
    threads, calls = 8, 500
    everything = asyncio.Event()

    def take(thread: int, number: int) -> None:
        seen.append((thread, number))
        if len(seen) == threads * calls:
            everything.set()

    def post(thread: int) -> None:
        for number in range(calls):
            bell.call(functools.partial(take, thread, number))

    posting = [threading.Thread(target=post, args=(thread,)) for thread in range(threads)]
    for thread in posting:
        thread.start()
    await asyncio.wait_for(everything.wait(), 30)
    for thread in range(threads):
        assert [number for of, number in seen if of == thread] == list(range(calls))


async def test_those_that_come_together_wake_the_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, rings = asyncio.get_running_loop(), 0
    wake = loop.call_soon_threadsafe

    def counted(call: Callable[[], object]) -> object:
        nonlocal rings
        rings += 1
        return wake(call)

    monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
    bell, seen = LoopCalls(loop), []
    for turn in range(2):
        for number in range(9):
            bell.call(functools.partial(seen.append, number))
        await asyncio.sleep(0.01)
        assert rings == turn + 1
    assert seen == [*range(9)] * 2


async def test_one_that_fails_is_reported_and_costs_no_other() -> None:
    loop, told, seen = asyncio.get_running_loop(), [], []
    loop.set_exception_handler(lambda _, context: told.append(context["exception"]))
    bell = LoopCalls(loop)
    bell.call(lambda: 1 / 0)
    bell.call(lambda: seen.append(1))
    await asyncio.sleep(0.01)
    assert seen == [1]
    assert isinstance(told[0], ZeroDivisionError)


def test_a_call_to_a_closed_loop_raises() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    bell = LoopCalls(loop)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="closed"):
            bell.call(lambda: None)

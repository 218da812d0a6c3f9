"""Long work of many tenants in one thread: who is next, and what a call that ends early leaves."""

from __future__ import annotations

import asyncio
import threading

import pytest

from headwise.errors import Overloaded
from services.runtime.serving.fair_threads import FairThreads


async def _settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_tenants_take_turns_however_many_calls_one_of_them_makes() -> None:
    threads, began, go_on = FairThreads(), threading.Event(), threading.Event()
    order: list[str] = []

    def first() -> None:
        began.set()
        assert go_on.wait(20)

    calls = [asyncio.create_task(threads.run("many", first))]
    await asyncio.to_thread(began.wait, 20)
    for name, tenant in (("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("c1", "c")):
        calls.append(asyncio.create_task(threads.run(tenant, lambda n=name: order.append(n))))
        await _settled()
    # a call that ends while it waits is passed over
    calls.pop(3).cancel()
    go_on.set()
    await asyncio.gather(*calls)
    assert order == ["a1", "b1", "c1", "a2"]


async def test_a_thread_is_taken_until_its_work_ends_also_if_the_call_has_ended() -> None:
    threads, began, go_on = FairThreads(), threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        assert go_on.wait(20)
        raise ValueError("no one waits for this")

    left = asyncio.create_task(threads.run("a", work))
    await asyncio.to_thread(began.wait, 20)
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    after = asyncio.create_task(threads.run("b", lambda: 5))
    await _settled()
    assert not after.done()
    go_on.set()
    assert await after == 5
    with pytest.raises(KeyError):
        await threads.run("b", lambda: {}["x"])


async def test_a_line_is_bounded_for_each_tenant() -> None:
    threads, go_on = FairThreads(max_waiting=2), threading.Event()
    calls = [asyncio.create_task(threads.run("a", go_on.wait)) for _ in range(3)]
    await _settled()
    with pytest.raises(Overloaded) as caught:
        await threads.run("a", go_on.wait)
    assert caught.value.reason == "PROMPTS_WAITING"
    assert caught.value.retry_after_seconds
    other = asyncio.create_task(threads.run("b", go_on.wait))
    await _settled()
    go_on.set()
    assert all(await asyncio.gather(other, *calls))

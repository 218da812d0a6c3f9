"""The signal of freed pages reaches its handler on the event loop, and survives the loop's end."""

from __future__ import annotations

import asyncio
import threading

from services.decode.engine.loop_calls import LoopCalls
from services.decode.memory.freed_pages import FreedPages


async def test_another_threads_signal_runs_the_handler_on_the_event_loop() -> None:
    called = asyncio.Event()
    threads: list[int] = []

    def handle() -> None:
        threads.append(threading.get_ident())
        called.set()

    freed = FreedPages(LoopCalls(asyncio.get_running_loop()).call)
    freed.connect(handle)
    await asyncio.to_thread(freed.notify)
    await asyncio.wait_for(called.wait(), 5)
    assert threads == [threading.get_ident()]


def test_a_signal_after_the_loops_end_is_dropped() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    called: list[None] = []
    freed = FreedPages(LoopCalls(loop).call)
    freed.notify()
    freed.connect(lambda: called.append(None))
    freed.notify()
    assert not called

"""A few threads for work that would hold the event loop up; tenants take turns."""

from __future__ import annotations

import asyncio
import contextvars
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from headwise.errors import Overloaded

T = TypeVar("T")

# each waiting call holds its request, 4 MiB at most
_MAX_WAITING = 256
_RETRY_SECONDS = 1.0


class FairThreads:
    """Runs work in threads, for use on the event loop.

    While all threads are busy, each tenant has a line of its own, and a free thread goes to the
    next tenant in turn. A line of more than `max_waiting` calls is `Overloaded`.
    """

    def __init__(self, threads: int = 1, max_waiting: int = _MAX_WAITING) -> None:
        self._pool = ThreadPoolExecutor(threads, "prompts")
        self._free = threads
        self._max_waiting = max_waiting
        self._lines: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    async def run(self, tenant: str, work: Callable[[], T]) -> T:
        """Return what `work` returns, or raise what it raises."""
        await self._turn(tenant)
        context = contextvars.copy_context()
        running = asyncio.get_running_loop().run_in_executor(self._pool, context.run, work)
        running.add_done_callback(self._done)
        # a thread cannot be stopped: the turn ends with the work, also if the call ends before
        return await asyncio.shield(running)

    async def _turn(self, tenant: str) -> None:
        if self._free:
            self._free -= 1
            return
        line = self._lines.setdefault(tenant, deque())
        if len(line) >= self._max_waiting:
            raise Overloaded(
                f"{len(line)} prompts of this tenant wait to be tokenized",
                "PROMPTS_WAITING",
                retry_after_seconds=_RETRY_SECONDS,
            )
        turn = asyncio.get_running_loop().create_future()
        line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                # the thread was given to this call in the same moment
                self._next()
            raise

    def _done(self, running: asyncio.Future[T]) -> None:
        # read, because asyncio reports an error that is never read
        if not running.cancelled():
            running.exception()
        self._next()

    def _next(self) -> None:
        """Give a free thread to the first call of the next line."""
        while self._lines:
            tenant, line = next(iter(self._lines.items()))
            turn = line.popleft()
            if line:
                self._lines.move_to_end(tenant)
            else:
                del self._lines[tenant]
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

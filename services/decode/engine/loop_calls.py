"""Calls into an event loop from other threads, several per wake-up."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable


class LoopCalls:
    """Queues calls for an event loop, and wakes the loop for the first of them.

    A wake-up takes a system call, some 20 µs, and each step has events of every sequence. Calls run
    in the order in which they were queued.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: collections.deque[Callable[[], object]] = collections.deque()
        self._woken = False

    def call(self, function: Callable[[], object]) -> None:
        """Queue a call. From any thread; raises `RuntimeError` once the loop is closed."""
        self._calls.append(function)
        # a call that finds the loop woken was appended before the loop takes the queue
        if not self._woken:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self._run)
            except RuntimeError:
                self._woken = False
                raise

    def _run(self) -> None:
        self._woken = False
        while self._calls:
            # the loop makes each call by itself, so that a failing call does not stop the others
            self._loop.call_soon(self._calls.popleft())

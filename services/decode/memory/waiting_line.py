"""The line of generations that wait for pages."""

from __future__ import annotations

import asyncio
import dataclasses
import heapq
import itertools
import time
from collections.abc import Callable, Iterator

from kvstore.pool import SequencePages

OpenPages = Callable[[], SequencePages]
# a request without a deadline waits in line as if it had this one
_DEFAULT_PATIENCE_SECONDS = 60.0


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Waiter:
    """A generation that waits for pages for `answers` answers; `opened` receives the pages."""

    answers: int
    open_pages: OpenPages
    opened: asyncio.Future[SequencePages]


class WaitingLine:
    """Waiters by deadline, the nearest first. Used on the event loop alone."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Waiter]] = []
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Waiter]:
        """Iterate over a copy of the line in order; waiters may be removed meanwhile."""
        return (waiter for _, _, waiter in sorted(self._entries))

    def join(self, answers: int, open_pages: OpenPages, timeout_seconds: float | None) -> Waiter:
        """Add a waiter whose deadline is `timeout_seconds` from this moment."""
        patience = _DEFAULT_PATIENCE_SECONDS if timeout_seconds is None else timeout_seconds
        waiter = Waiter(answers, open_pages, asyncio.get_running_loop().create_future())
        heapq.heappush(self._entries, (time.monotonic() + patience, next(self._order), waiter))
        return waiter

    def head(self) -> Waiter | None:
        """Return the waiter with the nearest deadline; waiters that are done are dropped."""
        while self._entries and self._entries[0][2].opened.done():
            # cancelled, and the waiter's task has not left the line yet
            heapq.heappop(self._entries)
        return self._entries[0][2] if self._entries else None

    def remove(self, waiter: Waiter) -> bool:
        """Take a waiter out of the line; False if it is not there."""
        left = [entry for entry in self._entries if entry[2] is not waiter]
        removed = len(left) < len(self._entries)
        if removed:
            self._entries = left
            heapq.heapify(self._entries)
        return removed

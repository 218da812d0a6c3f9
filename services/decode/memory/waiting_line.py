"""The line of generations that wait for pages."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator

from kvstore.pool import SequencePages
from kvstore.shares import Shares

OpenPages = Callable[[], SequencePages]
# a request without a deadline waits in line as if it had this one
_DEFAULT_PATIENCE_SECONDS = 60.0


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Waiter:
    """A tenant's generation that waits for pages for `answers` answers; `opened` receives them."""

    tenant: str
    answers: int
    open_pages: OpenPages
    opened: asyncio.Future[SequencePages]
    deadline: float
    number: int


class WaitingLine:
    """Waiters in the order in which they are admitted. Used on the event loop alone.

    The tenant with the fewest running sequences, by `running`, comes first; within a tenant the
    nearest deadline does. A full line is decided by the tenants' shares of its places.
    """

    def __init__(self, places: int, running: Callable[[str], int]) -> None:
        self._running = running
        self._shares = Shares(places)
        self._waiters: list[Waiter] = []
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._waiters)

    def __iter__(self) -> Iterator[Waiter]:
        """Iterate over a copy of the line in order; waiters may be removed meanwhile."""
        return iter(sorted(self._waiters, key=self._order))

    def full_for(self, tenant: str) -> bool:
        """Whether the line has no place for this tenant."""
        return self._shares.who_yields(tenant) == tenant

    def join(
        self, tenant: str, answers: int, open_pages: OpenPages, timeout_seconds: float | None
    ) -> Waiter:
        """Add a waiter whose deadline is `timeout_seconds` from this moment."""
        patience = _DEFAULT_PATIENCE_SECONDS if timeout_seconds is None else timeout_seconds
        opened: asyncio.Future[SequencePages] = asyncio.get_running_loop().create_future()
        deadline = time.monotonic() + patience
        waiter = Waiter(tenant, answers, open_pages, opened, deadline, next(self._numbers))
        self._waiters.append(waiter)
        self._shares.take(tenant)
        return waiter

    def surplus(self, newest: Waiter) -> Waiter | None:
        """Return the waiter that has to leave a line that `newest` made too long, or None."""
        yielding = self._shares.who_yields(newest.tenant, 0)
        if yielding is None:
            return None
        if yielding == newest.tenant:
            return newest
        return max((w for w in self._waiters if w.tenant == yielding), key=lambda w: w.number)

    def head(self) -> Waiter | None:
        """Return the first waiter; waiters that are done are dropped."""
        for waiter in [waiter for waiter in self._waiters if waiter.opened.done()]:
            # cancelled, and the waiter's task has not left the line yet
            self.remove(waiter)
        return min(self._waiters, key=self._order, default=None)

    def remove(self, waiter: Waiter) -> bool:
        """Take a waiter out of the line; False if it is not there."""
        if waiter not in self._waiters:
            return False
        self._waiters.remove(waiter)
        self._shares.give_back(waiter.tenant)
        return True

    def _order(self, waiter: Waiter) -> tuple[int, float, int]:
        return self._running(waiter.tenant), waiter.deadline, waiter.number

"""Room is reserved before prefill is asked for anything; who finds none waits in line."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import heapq
import itertools
import time
from collections.abc import Callable

from headwise.errors import Overloaded
from kvstore.errors import PoolExhausted
from kvstore.pool import PageCount, SequencePages
from services.runtime.process import metrics

# who names no deadline stands in line as if it had this one
_PATIENCE_SECONDS = 60.0
_RETRY_SECONDS = (0.1, 30.0)
# how long the line may stand while nothing runs
_STARVED_SECONDS = 5.0
# weight of the newest observation
_NEWEST = 0.3


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    answers: int
    open_pages: Callable[[], SequencePages]
    place: asyncio.Future[SequencePages]


class Admission:
    """A bounded line, nearest deadline first. Used on the event loop alone.

    `evict` drops an idle session and says whether there was one; `preempted` counts sequences that
    wait for room already and come before any new one.
    """

    def __init__(
        self,
        evict: Callable[[], bool],
        preempted: Callable[[], int],
        *,
        max_sequences: int,
        max_queued: int,
        claim_seconds: float,
    ) -> None:
        self._evict = evict
        self._preempted = preempted
        self._max_sequences = max_sequences
        self._max_queued = max_queued
        self._claim_seconds = claim_seconds
        self._line: list[tuple[float, int, _Waiter]] = []
        self._order = itertools.count()
        self._room = asyncio.Event()
        self._stay_seconds = _RETRY_SECONDS[0]
        self._moved = time.monotonic()
        self.sequences = 0

    @property
    def queued(self) -> int:
        """Generations that wait for room."""
        return len(self._line)

    def require_place(self) -> None:
        """Raise `Overloaded` if the line is full: asked before any work is done for a request."""
        if len(self._line) >= self._max_queued and (self._line or not self._fits(1)):
            raise self._full()

    async def admit(
        self,
        answers: int,
        timeout_seconds: float | None,
        open_pages: Callable[[], SequencePages],
    ) -> SequencePages:
        """Wait in line for `open_pages` not to raise `PoolExhausted`, and for so many answers.

        `leave` must follow for each answer. Raises `Overloaded` if the line is full.
        """
        self.require_place()
        patience = _PATIENCE_SECONDS if timeout_seconds is None else timeout_seconds
        place: asyncio.Future[SequencePages] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(answers, open_pages, place)
        entry = (time.monotonic() + patience, next(self._order), waiter)
        heapq.heappush(self._line, entry)
        self.advance()
        if not place.done() and len(self._line) > self._max_queued:
            self._leave_line(entry)
            raise self._full()
        try:
            return await place
        except asyncio.CancelledError:
            # both may happen in one turn of the event loop
            if place.done() and not place.cancelled() and not place.exception():
                place.result().release()
                self.leave(answers)
            else:
                self._leave_line(entry)
            raise

    def leave(self, answers: int = 1, stayed_seconds: float | None = None) -> None:
        """So many answers have ended, and their pages have been given back."""
        self.sequences -= answers
        if stayed_seconds is not None:
            self._stay_seconds += _NEWEST * (stayed_seconds - self._stay_seconds)
        self.advance()

    def advance(self) -> None:
        """Room may have come free: let in who is next, and wake who waits for pages."""
        self._room.set()
        while self._line:
            _, _, waiter = self._line[0]
            if waiter.place.done():
                # cancelled, and its task has not come to leave the line yet
                heapq.heappop(self._line)
                continue
            if not self._fits(waiter.answers):
                return
            try:
                self._let_in(waiter)
            except PoolExhausted:
                if self._evict() or (not self.sequences and self._let_another_in()):
                    continue
                return
            heapq.heappop(self._line)

    def tick(self) -> None:
        """Try again, and refuse who is next if nothing runs that could make room for it."""
        self.advance()
        now = time.monotonic()
        if self.sequences or not self._line:
            self._moved = now
        elif now - self._moved > _STARVED_SECONDS:
            self._moved = now
            _, _, waiter = heapq.heappop(self._line)
            if not waiter.place.done():
                waiter.place.set_exception(self._starved())

    async def claim(self, pages: SequencePages, need: PageCount) -> None:
        """Have `need` pages promised to an arriving cache, waiting for room while it is held up.

        Raises `Overloaded` if none comes free in time.
        """
        until, held_up = time.monotonic() + self._claim_seconds, False
        while True:
            self._room.clear()
            try:
                pages.reservation.ensure(need)
            except PoolExhausted as error:
                if self._evict():
                    continue
                if not held_up:
                    # once, however often it looks in vain
                    metrics.CLAIMS_WAITING.inc()
                    held_up = True
                await self._wait_for_room(until, error)
            else:
                return

    async def _wait_for_room(self, until: float, error: PoolExhausted) -> None:
        try:
            async with asyncio.timeout(until - time.monotonic()):
                await self._room.wait()
        except TimeoutError:
            raise Overloaded(
                f"no room for an arriving cache in {self._claim_seconds:g} s: {error}",
                "POOL_EXHAUSTED",
                retry_after_seconds=self._stay_seconds,
            ) from error

    def _let_another_in(self) -> bool:
        """Somebody who is not next: turns in line hold their sessions, which cannot give way."""
        for entry in sorted(self._line)[1:]:
            waiter = entry[2]
            if waiter.place.done() or not self._fits(waiter.answers):
                continue
            with contextlib.suppress(PoolExhausted):
                self._let_in(waiter)
                self._line.remove(entry)
                heapq.heapify(self._line)
                return True
        return False

    def _let_in(self, waiter: _Waiter) -> None:
        """Raises `PoolExhausted` where there is no room; any other error is the waiter's own."""
        try:
            pages = waiter.open_pages()
        except PoolExhausted:
            raise
        except Exception as error:
            waiter.place.set_exception(error)
        else:
            self.sequences += waiter.answers
            self._moved = time.monotonic()
            waiter.place.set_result(pages)

    def _fits(self, answers: int) -> bool:
        return self.sequences + answers <= self._max_sequences and not self._preempted()

    def _leave_line(self, entry: tuple[float, int, _Waiter]) -> None:
        if entry in self._line:
            self._line.remove(entry)
            heapq.heapify(self._line)
            self.advance()

    def _starved(self) -> Overloaded:
        return Overloaded(
            "the pool is full of sessions whose next turns wait",
            "POOL_EXHAUSTED",
            retry_after_seconds=self._stay_seconds,
        )

    def _full(self) -> Overloaded:
        low, high = _RETRY_SECONDS
        wait = self._stay_seconds * (len(self._line) + 1) / self._max_sequences
        return Overloaded(
            f"{self.sequences} generations are running and {len(self._line)} are waiting",
            "DECODE_FULL",
            retry_after_seconds=min(high, max(low, wait)),
        )

"""The one place that decides whose pages are freed, and who waits, when the pool is full."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from headwise.errors import Overloaded
from kvstore.errors import PoolExhausted
from kvstore.pool import PageCount, PagePool, SequencePages
from services.decode.memory.freed_pages import FreedPages
from services.decode.memory.places import Places
from services.decode.memory.pool_shares import Evictable, PoolShares
from services.decode.memory.preemptible import Preemptible
from services.decode.memory.waiting_line import OpenPages, Waiter, WaitingLine
from services.runtime.process import metrics
from services.runtime.serving.status import RETRY_AFTER_SECONDS

log = logging.getLogger("headwise.memory")

_RETRY_SECONDS = (0.1, 30.0)
# how long the line may stand while nothing runs
_STARVED_SECONDS = 5.0
# weight of the newest observation
_NEWEST = 0.3

_Opened = TypeVar("_Opened")


_Sequence = TypeVar("_Sequence", bound=Preemptible)


@dataclasses.dataclass(frozen=True, slots=True)
class MemoryLimits:
    """Limits of decode's memory."""

    max_sequences: int
    max_queued: int
    reservation_timeout_seconds: float
    swap_bytes: int


class MemoryArbiter(Generic[_Sequence]):
    """Gives out the pages of the pool.

    The tenant that holds more than its share and most of the pages gives them up, in this order:

    1. resident caches, the least recently used first: they can be fetched again;
    2. idle sessions, the least recently used first;
    3. the youngest running sequences, which move to host memory; for running sequences, and for
       waiting generations of tenants with fewer sequences.

    A preempted sequence returns before any new generation starts, but for one of a tenant that runs
    fewer. New generations wait in a bounded line; an arriving cache waits for a limited time.

    `reserve_for_step` and `restore` belong to the engine's thread, all else to the event loop.
    """

    def __init__(
        self,
        pool: PagePool,
        resident_caches: Evictable,
        sessions: Evictable,
        freed: FreedPages,
        limits: MemoryLimits,
    ) -> None:
        self._pool = pool
        self._shares = PoolShares(pool, resident_caches, sessions)
        self._freed = freed
        self._limits = limits
        self._places = Places(limits.max_sequences)
        self._line = WaitingLine(limits.max_queued, self._places.admitted_of)
        # the first waiter, if places or pages have to come free for it
        self._blocked: Waiter | None = None
        self._lacks_pages = False
        self._freed_event = asyncio.Event()
        self._stay_seconds = _RETRY_SECONDS[0]
        self._progressed = time.monotonic()
        # a page for every head: a restored sequence can go on for a while
        heads = sum(shape.kv_heads for shape in pool.shapes)
        self._spare = PageCount(heads, heads)
        self.preempted: list[_Sequence] = []
        freed.connect(self.advance)

    @property
    def sequences(self) -> int:
        """Sequences that were admitted and have not ended."""
        return self._places.admitted

    @property
    def queued(self) -> int:
        """Generations that wait for pages."""
        return len(self._line)

    @property
    def swapped_bytes(self) -> int:
        """Host memory that preempted sequences occupy. From any thread."""
        return sum(sequence.swapped_bytes for sequence in tuple(self.preempted))

    def require_place(self, tenant: str = "") -> None:
        """Raise `Overloaded` if the line is full; called before any work for a request."""
        if self._line.full_for(tenant) and (self._line or not self._fits(tenant, 1)):
            raise self._full()

    async def admit(
        self,
        answers: int,
        timeout_seconds: float | None,
        open_pages: OpenPages,
        tenant: str = "",
    ) -> SequencePages:
        """Wait until there is room for `answers` answers and `open_pages` finds its pages.

        `release_answers` must follow for each answer. Raises `Overloaded` if the line is full.
        """
        self.require_place(tenant)
        waiter = self._line.join(tenant, answers, open_pages, timeout_seconds)
        self.advance()
        self._shorten_line(waiter)
        try:
            return await waiter.opened
        except asyncio.CancelledError:
            # the pages may have been opened in the same turn of the event loop
            opened = waiter.opened
            if opened.done() and not opened.cancelled() and not opened.exception():
                opened.result().release()
                self.release_answers(answers, tenant=tenant)
            else:
                self._leave_line(waiter)
            raise

    def release_answers(
        self, answers: int = 1, stayed_seconds: float | None = None, tenant: str = ""
    ) -> None:
        """Give back the places of answers that have ended and whose pages have been released."""
        self._places.give_back(tenant, answers)
        if stayed_seconds is not None:
            self._stay_seconds += _NEWEST * (stayed_seconds - self._stay_seconds)
        self.advance()

    def advance(self) -> None:
        """Admit waiters as long as there is room, and wake arriving caches that wait for pages."""
        self._freed_event.set()
        self._blocked, self._lacks_pages = None, False
        while (waiter := self._line.head()) is not None:
            if not self._fits(waiter.tenant, waiter.answers):
                self._blocked = waiter
                return
            try:
                self._open(waiter)
            except PoolExhausted:
                if self.sequences or not self._admit_another(waiter):
                    self._blocked, self._lacks_pages = waiter, True
                    return
            else:
                self._line.remove(waiter)

    def tick(self) -> None:
        """Advance, and refuse the first waiter if nothing runs that could free pages for it."""
        self.advance()
        now = time.monotonic()
        if self.sequences or not self._line:
            self._progressed = now
        elif now - self._progressed > _STARVED_SECONDS:
            self._progressed = now
            if (waiter := self._line.head()) is not None:
                self._line.remove(waiter)
                waiter.opened.set_exception(self._starved())

    async def reserve_for_arrival(self, pages: SequencePages, need: PageCount) -> None:
        """Reserve `need` pages for an arriving cache, whose sender is held up meanwhile.

        Raises `Overloaded` if they do not come free in time.
        """
        until = time.monotonic() + self._limits.reservation_timeout_seconds
        waited = False
        while True:
            self._freed_event.clear()
            try:
                return self._make_room(
                    pages.owner, functools.partial(pages.reservation.ensure, need)
                )
            except PoolExhausted as error:
                if not waited:
                    # one count per wait, however often it tries in vain
                    metrics.CLAIMS_WAITING.inc()
                    waited = True
                await self._wait_for_pages(until, error)

    def reserve_for_step(
        self,
        sequence: _Sequence,
        need: PageCount,
        running: list[_Sequence],
        on_preempt: Callable[[_Sequence], None],
    ) -> bool:
        """Reserve `need` pages for a running sequence; False if the sequence must wait.

        `running` holds all sequences with pages, the oldest first; preempted ones leave the list,
        and `on_preempt` is called just before.
        """
        while sequence.pages is not None:
            reservation = sequence.pages.reservation
            try:
                self._make_room(sequence.owner, functools.partial(reservation.ensure, need))
            except PoolExhausted:
                if len(running) == 1:
                    return False
                owner = self._shares.yielding(sequence.owner, (one.owner for one in running))
                self._preempt_youngest(owner, running, on_preempt)
            else:
                return True
        return False

    def restore(self, running: list[_Sequence], on_preempt: Callable[[_Sequence], None]) -> None:
        """Move preempted sequences back into the pool, the oldest first, while there is room.

        First the youngest sequences of tenants that run most make room for a waiting generation.
        """
        while self._yields_for_waiter(running, on_preempt):
            pass
        while self.preempted:
            sequence, spare = self.preempted[0], self._spare if running else PageCount()
            if not self._may_return(sequence):
                return
            try:
                self._make_room(
                    sequence.owner, functools.partial(sequence.swap_in, self._pool, spare)
                )
            except PoolExhausted:
                return
            running.append(self.preempted.pop(0))
            if not self.preempted:
                self._freed.notify()

    def _make_room(self, owner: str, take: Callable[[], _Opened]) -> _Opened:
        """Call `take`, which raises `PoolExhausted`, until it succeeds or nothing idle may go."""
        while True:
            try:
                return take()
            except PoolExhausted as refused:
                if not self._shares.free_idle(owner, refused):
                    raise

    def _yields_for_waiter(
        self, running: list[_Sequence], on_preempt: Callable[[_Sequence], None]
    ) -> bool:
        """Preempt a sequence for the first waiter, where its tenant runs fewer; False if none."""
        waiter = self._blocked
        if waiter is None or waiter.opened.done():
            return False
        owner = self._places.yielding(waiter.tenant, waiter.answers, self.preempted)
        if owner is None and self._lacks_pages:
            most = self._shares.yielding(waiter.tenant, (one.owner for one in running))
            more = self._places.runs_more(most, waiter.tenant, waiter.answers, self.preempted)
            # a sequence of a tenant that runs fewer would come back at once
            owner = most if more else None
        if owner in (None, waiter.tenant) or all(one.owner != owner for one in running):
            return False
        metrics.SHARES_YIELDED.labels("sequences").inc()
        self._preempt_youngest(owner, running, on_preempt)
        self._freed.notify()
        return True

    def _preempt_youngest(
        self, owner: str, running: list[_Sequence], on_preempt: Callable[[_Sequence], None]
    ) -> None:
        youngest = next(one for one in reversed(running) if one.owner == owner)
        running.remove(youngest)
        on_preempt(youngest)
        self._preempt(youngest)

    def _may_return(self, sequence: _Sequence) -> bool:
        """Whether there is a place, and no waiting generation comes first."""
        waiter, preempted = self._blocked, tuple(self.preempted)
        if self._places.free(preempted) < 1:
            return False
        return waiter is None or not self._places.comes_first(
            waiter.tenant, waiter.answers, preempted
        )

    def _preempt(self, sequence: _Sequence) -> None:
        sequence.swap_out()
        metrics.PREEMPTIONS.inc()
        self.preempted.insert(0, sequence)
        if self.swapped_bytes > self._limits.swap_bytes:
            log.warning("no host memory is left for a preempted sequence")
            sequence.fail(
                Overloaded(
                    "the pool is full, and so is the host memory for preempted sequences",
                    "POOL_EXHAUSTED",
                    retry_after_seconds=RETRY_AFTER_SECONDS,
                )
            )
            sequence.cancel()

    def _admit_another(self, head: Waiter) -> bool:
        """Admit the first waiter behind `head` that fits.

        Turns in the line hold their sessions busy, so that these cannot be evicted for `head`.
        """
        for waiter in self._line:
            if waiter is head or waiter.opened.done():
                continue
            if not self._fits(waiter.tenant, waiter.answers):
                continue
            try:
                self._open(waiter)
            except PoolExhausted:
                continue
            self._line.remove(waiter)
            return True
        return False

    def _open(self, waiter: Waiter) -> None:
        """Open a waiter's pages; raises `PoolExhausted`. Any other error is the waiter's."""
        try:
            pages = self._make_room(waiter.tenant, waiter.open_pages)
        except PoolExhausted:
            raise
        except Exception as error:
            waiter.opened.set_exception(error)
        else:
            self._places.take(waiter.tenant, waiter.answers)
            self._progressed = time.monotonic()
            waiter.opened.set_result(pages)

    async def _wait_for_pages(self, until: float, error: PoolExhausted) -> None:
        try:
            async with asyncio.timeout(until - time.monotonic()):
                await self._freed_event.wait()
        except TimeoutError:
            seconds = self._limits.reservation_timeout_seconds
            raise Overloaded(
                f"no room for an arriving cache in {seconds:g} s: {error}",
                "POOL_EXHAUSTED",
                retry_after_seconds=self._stay_seconds,
            ) from error

    def _fits(self, tenant: str, answers: int) -> bool:
        preempted = tuple(self.preempted)
        free = self._places.free(preempted) >= answers
        return free and self._places.comes_first(tenant, answers, preempted)

    def _shorten_line(self, newest: Waiter) -> None:
        """Refuse a waiter of the tenant with most places if the line became too long.

        Raises `Overloaded` if that is the newest one.
        """
        if newest.opened.done() or (surplus := self._line.surplus(newest)) is None:
            return
        self._leave_line(surplus)
        if surplus is newest:
            raise self._full()
        metrics.SHARES_YIELDED.labels("decode_queue").inc()
        if not surplus.opened.done():
            surplus.opened.set_exception(self._full())

    def _leave_line(self, waiter: Waiter) -> None:
        if self._line.remove(waiter):
            self.advance()

    def _starved(self) -> Overloaded:
        return Overloaded(
            "the pool is full of sessions whose next turns wait",
            "POOL_EXHAUSTED",
            retry_after_seconds=self._stay_seconds,
        )

    def _full(self) -> Overloaded:
        low, high = _RETRY_SECONDS
        wait = self._stay_seconds * (len(self._line) + 1) / self._limits.max_sequences
        return Overloaded(
            f"{self.sequences} generations are running and {len(self._line)} are waiting",
            "DECODE_FULL",
            retry_after_seconds=min(high, max(low, wait)),
        )

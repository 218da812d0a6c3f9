"""The queue of prompts: one is computed at a time, and tenants take turns between chunks."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future

from headwise.errors import Overloaded
from kvstore.shares import Shares, Turns
from services.prefill.compute.stop_signal import StopSignal
from services.prefill.sharing.unread_caches import UnreadCaches
from services.runtime.process import metrics
from services.runtime.serving.status import RETRY_AFTER_SECONDS

# prompts that are begun and not complete. Each holds the keys and values of its tokens, and a
# tenant has one at most
MAX_BEGUN = 4


class QueueSlot:
    """A place in the queue, and the permission to compute once `granted` has a result."""

    def __init__(self, queue: PrefillQueue, tenant: str, clock: Callable[[], float]) -> None:
        self.tenant = tenant
        self.granted: Future[None] = Future()
        self.begun = False
        self.counted = False
        self._queue = queue
        self._clock = clock
        self._mark = self._joined = clock()

    @property
    def waited_seconds(self) -> float:
        """Seconds from the joining to the last grant."""
        return self._mark - self._joined

    def grant(self) -> bool:
        """Let the prompt be computed; False if its request has been cancelled."""
        if not self.granted.set_running_or_notify_cancel():
            return False
        self.begun, self._mark = True, self._clock()
        self.granted.set_result(None)
        return True

    def used_seconds(self) -> float:
        """Return the seconds computed since the grant or the last call."""
        before, self._mark = self._mark, self._clock()
        return self._mark - before

    def give_way(self, stop: StopSignal) -> None:
        """Let a tenant that has used less compute first; for the computing thread, between chunks.

        Raises `PrefillStopped` if `stop` is set meanwhile.
        """
        self._queue.give_way(self, stop)


class PrefillQueue:
    """A queue of at most `max_queued` requests, beside those that are begun.

    The next turn goes to the tenant that has used least time. In a full queue the tenant with most
    places makes room. Safe to use from any thread.
    """

    def __init__(
        self,
        max_queued: int,
        unread: UnreadCaches,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._places = Shares(max_queued)
        self._unread = unread
        self._clock = clock
        self._turns = Turns()
        self._waiting: list[QueueSlot] = []
        self._begun = 0
        self._computing: QueueSlot | None = None
        self._lock = threading.RLock()
        unread.on_room = self._advance

    @contextlib.asynccontextmanager
    async def slot(self, tenant: str = "") -> AsyncIterator[QueueSlot]:
        """Hold a queue slot until the block ends. Raises `Overloaded` if the queue is full."""
        slot = QueueSlot(self, tenant, self._clock)
        self._join(slot)
        try:
            await asyncio.wrap_future(slot.granted)
            yield slot
        finally:
            self._leave(slot)

    def give_way(self, slot: QueueSlot, stop: StopSignal) -> None:
        """See `QueueSlot.give_way`."""
        with self._lock:
            self._turns.charge(slot.tenant, slot.used_seconds())
            slot.granted = Future()
            self._computing = None
            # first in the line: it goes on if no other tenant has used less
            self._waiting.insert(0, slot)
            self._advance()
        stop.wait_for(slot.granted)

    def _join(self, slot: QueueSlot) -> None:
        with self._lock:
            self._waiting.append(slot)
            self._advance()
            if slot.begun:
                return
            yielding = self._places.who_yields(slot.tenant)
            if yielding == slot.tenant:
                self._waiting.remove(slot)
                raise self._full()
            if yielding is not None:
                self._displace(yielding)
            slot.counted = True
            self._places.take(slot.tenant)
            metrics.PREFILL_QUEUED.set(self._places.total)

    def _leave(self, slot: QueueSlot) -> None:
        with self._lock:
            if self._computing is slot:
                self._turns.charge(slot.tenant, slot.used_seconds())
                self._computing = None
            self._begun -= slot.begun
            if slot in self._waiting:
                self._waiting.remove(slot)
            self._uncount(slot)
            metrics.PREFILL_COMPUTING.set(self._begun)
            self._advance()

    def _advance(self) -> None:
        """Grant the next turn, if none is being used."""
        with self._lock:
            while self._computing is None and (slot := self._next()) is not None:
                self._waiting.remove(slot)
                self._uncount(slot)
                fresh = not slot.begun
                if slot.grant():
                    self._turns.begin(slot.tenant)
                    self._begun += fresh
                    self._computing = slot
                    metrics.PREFILL_COMPUTING.set(self._begun)

    def _next(self) -> QueueSlot | None:
        """Return the slot whose turn it is: of the tenant that has used least, the first."""
        for tenant in self._turns.order(slot.tenant for slot in self._waiting):
            first = next(slot for slot in self._waiting if slot.tenant == tenant)
            if first.begun or (self._begun < MAX_BEGUN and self._unread.may_begin(tenant)):
                return first
        return None

    def _displace(self, tenant: str) -> None:
        """Refuse the newest waiting request of a tenant."""
        newest = next(s for s in reversed(self._waiting) if s.tenant == tenant and s.counted)
        self._waiting.remove(newest)
        self._uncount(newest)
        metrics.SHARES_YIELDED.labels("prefill_queue").inc()
        if newest.granted.set_running_or_notify_cancel():
            newest.granted.set_exception(self._full())

    def _uncount(self, slot: QueueSlot) -> None:
        if slot.counted:
            slot.counted = False
            self._places.give_back(slot.tenant)
            metrics.PREFILL_QUEUED.set(self._places.total)

    def _full(self) -> Overloaded:
        return Overloaded(
            f"{self._places.total} prompts are waiting already",
            "QUEUE_FULL",
            retry_after_seconds=RETRY_AFTER_SECONDS,
        )

"""Where a running sequence's next pages come from when the pool is full."""

from __future__ import annotations

import logging
from collections.abc import Callable

from headwise.errors import Overloaded
from kvstore.errors import PoolExhausted
from kvstore.pool import PageCount, PagePool, RetentionChunk
from services.decode.engine.sequence import RunningSequence
from services.runtime.process import metrics
from services.runtime.serving.status import RETRY_AFTER_SECONDS

log = logging.getLogger("headwise.room")


class NoRoom(Exception):
    """Somebody must wait for pages, and others may have been sent away; who is fed must be planned
    anew.
    """


class Room:
    """Idle sessions give way first, then the youngest sequences, which wait in host memory.

    `evict` drops the least recently used idle session and says whether there was one;
    `close_block` takes back the cells of a block that is given up; `on_room` is told when nobody
    waits here any more. Used by the engine's thread alone.
    """

    def __init__(
        self,
        pool: PagePool,
        evict: Callable[[], bool],
        close_block: Callable[[RetentionChunk], None],
        on_room: Callable[[], None],
        *,
        swap_bytes: int,
    ) -> None:
        self.preempted: list[RunningSequence] = []
        self._pool = pool
        self._evict = evict
        self._close_block = close_block
        self._on_room = on_room
        self.swap_bytes = swap_bytes
        # a page for every head: enough to go on for a while after having come back
        heads = sum(shape.kv_heads for shape in pool.shapes)
        self._spare = PageCount(heads, heads)

    @property
    def swapped_bytes(self) -> int:
        """Host memory that preempted sequences occupy."""
        # read by the metrics' thread too, while sequences come back
        swapped = [one.swapped for one in tuple(self.preempted)]
        return sum(one.nbytes for one in swapped if one)

    def make(
        self, sequence: RunningSequence, need: PageCount, running: list[RunningSequence]
    ) -> bool:
        """Have `need` pages promised to the sequence; False if it must wait.

        `running` are all that hold pages, oldest first; those that are preempted leave the list.
        """
        while sequence.pages is not None:
            try:
                sequence.pages.reservation.ensure(need)
            except PoolExhausted:
                if self._evict():
                    continue
                if len(running) == 1:
                    return False
                self._preempt(running.pop())
            else:
                return True
        return False

    def bring_back(self, running: list[RunningSequence]) -> None:
        """Let preempted sequences come back, oldest first, as long as there is room."""
        while self.preempted:
            sequence = self.preempted[0]
            try:
                sequence.swap_in(self._pool, self._spare if running else PageCount())
            except PoolExhausted:
                if self._evict():
                    continue
                return
            running.append(self.preempted.pop(0))
            if not self.preempted:
                self._on_room()

    def _preempt(self, sequence: RunningSequence) -> None:
        if sequence.block is not None:
            self._close_block(sequence.block)
        sequence.swap_out()
        metrics.PREEMPTIONS.inc()
        self.preempted.insert(0, sequence)
        if self.swapped_bytes > self.swap_bytes:
            log.warning("no host memory is left for a preempted sequence")
            sequence.fail(
                Overloaded(
                    "the pool is full, and so is the memory for who has to wait",
                    "POOL_EXHAUSTED",
                    retry_after_seconds=RETRY_AFTER_SECONDS,
                )
            )
            sequence.cancel()

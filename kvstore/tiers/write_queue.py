"""A queue of writes with one thread and a bound on the bytes that wait."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable

from kvstore.errors import InvalidParameter
from kvstore.tiers.deadline import Deadline


class WriteQueue:
    """Runs jobs in order on one thread, which does not keep the process alive.

    A job must not raise. Its bytes count from `submit` until the job has ended.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 1:
            raise InvalidParameter("max_bytes", "must be at least 1")
        self._max_bytes = max_bytes
        self._bytes = 0
        self._changed = threading.Condition()
        self._jobs: collections.deque[tuple[Callable[[], None], int]] = collections.deque()
        self._closed = False
        threading.Thread(target=self._serve, name="tier-writes", daemon=True).start()

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the jobs that have not ended."""
        return self._bytes

    def submit(self, job: Callable[[], None], nbytes: int) -> bool:
        """Add a job; return False if it does not fit. An empty queue takes a job of any size."""
        with self._changed:
            if self._closed or (self._bytes and self._bytes + nbytes > self._max_bytes):
                return False
            self._bytes += nbytes
            self._jobs.append((job, nbytes))
            self._changed.notify_all()
            return True

    def flush(self, deadline: Deadline) -> bool:
        """Wait until the queue is empty; return False if the deadline passed before."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._bytes, deadline.remaining_seconds)

    def close(self) -> None:
        """Accept no further jobs; those in the queue are still done."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _serve(self) -> None:
        while (item := self._next()) is not None:
            job, nbytes = item
            try:
                job()
            finally:
                with self._changed:
                    self._bytes -= nbytes
                    self._changed.notify_all()

    def _next(self) -> tuple[Callable[[], None], int] | None:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._jobs) or self._closed)
            return self._jobs.popleft() if self._jobs else None

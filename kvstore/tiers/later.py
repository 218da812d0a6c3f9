"""Work for later: one thread, and a bound on the bytes that wait for it."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable

from kvstore.errors import InvalidParameter
from kvstore.tiers.deadline import Deadline


class LaterQueue:
    """Runs jobs in order on a thread of its own, which does not keep the process alive.

    A job must not raise. Bytes count from `submit` until the job has ended.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 1:
            raise InvalidParameter("max_bytes", "must be at least 1")
        self._max_bytes = max_bytes
        self._bytes = 0
        self._changed = threading.Condition()
        self._jobs: collections.deque[tuple[Callable[[], None], int]] = collections.deque()
        self._closed = False
        threading.Thread(target=self._serve, name="tiers-later", daemon=True).start()

    @property
    def waiting_bytes(self) -> int:
        return self._bytes

    def submit(self, job: Callable[[], None], nbytes: int) -> bool:
        """False if it has no room; one job is always taken, however large."""
        with self._changed:
            if self._closed or (self._bytes and self._bytes + nbytes > self._max_bytes):
                return False
            self._bytes += nbytes
            self._jobs.append((job, nbytes))
            self._changed.notify_all()
            return True

    def flush(self, timeout_seconds: float) -> bool:
        """Wait for everything submitted so far and since; False if that took too long."""
        deadline = Deadline.after(timeout_seconds)
        with self._changed:
            return self._changed.wait_for(lambda: not self._bytes, deadline.remaining_seconds)

    def close(self) -> None:
        """Take nothing more; what waits is still done."""
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

"""Metrics of a cache transfer: its bytes, and the seconds of the same interval."""

from __future__ import annotations

import time

from services.runtime.process import metrics


class WireWatch:
    """Follows one cache in one direction, `sent` or `received`.

    Seconds run from the first `begin` to the last `moved`, pauses of the stream included.
    """

    def __init__(self, direction: str) -> None:
        self._bytes = metrics.WIRE_BYTES.labels(direction)
        self._seconds = metrics.WIRE_SECONDS.labels(direction)
        self._mark: float | None = None

    def begin(self) -> None:
        """Start the interval at the first message; later calls do nothing."""
        if self._mark is None:
            self._mark = time.perf_counter()

    def moved(self, message_bytes: int) -> None:
        """Count the bytes of a message that was sent or received."""
        assert self._mark is not None, "an interval begins before it is measured"
        now = time.perf_counter()
        self._bytes.inc(message_bytes)
        self._seconds.inc(now - self._mark)
        self._mark = now

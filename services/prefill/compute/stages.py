"""Time of a prefill by stage."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class StageClock:
    """Seconds by stage. The time inside nested stages counts for the innermost one only."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._stack: list[str] = []
        self._mark = time.perf_counter()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time until the block ends to stage `name`."""
        self._charge()
        self._stack.append(name)
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()

    def seconds(self, name: str) -> float:
        return self._seconds.get(name, 0.0)

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._stack:
            name = self._stack[-1]
            self._seconds[name] = self._seconds.get(name, 0.0) + now - self._mark
        self._mark = now

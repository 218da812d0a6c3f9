"""A clock that tests set."""

from __future__ import annotations

import time


class Clock:
    """Unix seconds: real ones, plus what the test has let pass."""

    def __init__(self) -> None:
        self._passed = 0.0

    def __call__(self) -> float:
        return time.time() + self._passed

    def advance(self, seconds: float) -> None:
        self._passed += seconds

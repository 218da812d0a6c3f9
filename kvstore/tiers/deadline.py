"""A point in time by which an answer is due."""

from __future__ import annotations

import dataclasses
import time


@dataclasses.dataclass(frozen=True, slots=True)
class Deadline:
    """Seconds of the monotonic clock."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(time.monotonic() + seconds)

    @property
    def remaining_seconds(self) -> float:
        """Seconds until the deadline; 0 once it has passed."""
        return max(0.0, self.at - time.monotonic())

    def require(self) -> None:
        """Raise `TimeoutError` once it has passed."""
        if time.monotonic() >= self.at:
            raise TimeoutError("the deadline has passed")

"""Reports when a tier begins to fail, and when it answers again."""

from __future__ import annotations

import threading
from collections.abc import Callable

from kvstore.tiers.base import Lookup, Miss, MissReason, PutResult, PutStatus

# a tier's name, and the error of its first failed call; None once the tier answers again
FaultReport = Callable[[str, str | None], None]

# a late answer shows neither a working nor a failing tier
_LATE = (MissReason.TIMEOUT, PutStatus.TIMEOUT)
_FAILED = (MissReason.UNAVAILABLE, PutStatus.UNAVAILABLE)


class FaultReporter:
    """Reports each fault once, however many calls fail. Thread-safe."""

    def __init__(self, report: FaultReport) -> None:
        self._report = report
        self._lock = threading.Lock()
        self._failing: set[str] = set()

    def record(self, tier: str, answer: Lookup | PutResult) -> None:
        """Take a tier's answer to a get or a put, and report a change."""
        outcome: MissReason | PutStatus | None = None
        error = ""
        if isinstance(answer, Miss):
            outcome, error = answer.reason, answer.detail
        elif isinstance(answer, PutResult):
            outcome, error = answer.status, answer.detail
        if outcome in _LATE:
            return
        fails = outcome in _FAILED
        with self._lock:
            if fails == (tier in self._failing):
                return
            (self._failing.add if fails else self._failing.discard)(tier)
        self._report(tier, error if fails else None)

"""Tells when a tier begins to fail, and when it answers again."""

from __future__ import annotations

import threading
from collections.abc import Callable

from kvstore.tiers.base import Hit, Lookup, Miss, MissReason, PutResult, PutStatus

# a tier's name, and what ails it; none once it answers again
FaultReport = Callable[[str, str | None], None]

# an answer that is late says neither
_LATE = (MissReason.TIMEOUT, PutStatus.TIMEOUT)
_FAILED = (MissReason.UNAVAILABLE, PutStatus.UNAVAILABLE)


class FaultWatch:
    """Reports once, however many calls fail. Thread-safe."""

    def __init__(self, report: FaultReport) -> None:
        self._report = report
        self._lock = threading.Lock()
        self._failing: set[str] = set()

    def saw(self, tier: str, answer: Lookup | PutResult) -> None:
        """A tier's answer to a get or a put."""
        outcome: MissReason | PutStatus | None = None
        if isinstance(answer, Miss):
            outcome = answer.reason
        elif isinstance(answer, PutResult):
            outcome = answer.status
        if outcome in _LATE:
            return
        fails = outcome in _FAILED
        with self._lock:
            if fails == (tier in self._failing):
                return
            (self._failing.add if fails else self._failing.discard)(tier)
        self._report(tier, None if isinstance(answer, Hit) or not fails else answer.detail)

"""Reception of arriving caches beside running sequences."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from kvstore.pool import PageCount, SequencePages

# reserves pages for an arriving cache, and waits until there are some
ReservePages = Callable[[SequencePages, PageCount], Awaitable[None]]

# seconds of pause for a second of work. The gaps between tokens (p99) grow 2.1-fold without any
# rest where a cache of 1,024 tokens arrives each second, and 1.6-fold with this
_REST = 2.0
# however long a large layer took
_MOST_SECONDS = 0.1


class Intake:
    """Reserves pages for each layer, and pauses between layers so that sequences keep the cores.

    `running` says whether a sequence runs whose steps need the cores. Used on the event loop.
    """

    def __init__(self, claim: ReservePages, running: Callable[[], bool]) -> None:
        self.claim = claim
        self._running = running

    async def rest(self, worked_seconds: float) -> None:
        """Pause after `worked_seconds` of work on an arriving cache, if sequences run.

        Nothing is read meanwhile, so that flow control holds the sender up.
        """
        if self._running():
            await asyncio.sleep(min(_MOST_SECONDS, _REST * worked_seconds))

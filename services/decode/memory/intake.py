"""Reception of arriving caches beside running sequences."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from kvstore.pool import PageCount, SequencePages

# reserves pages for an arriving cache, and waits until there are some
ReservePages = Callable[[SequencePages, PageCount], Awaitable[None]]

# seconds of pause for a second of work. The gaps between tokens (p99) grow 2.1-fold without any
# pause where a cache of 1,024 tokens arrives each second, and 1.6-fold with this
_PAUSE_RATIO = 2.0
# the longest pause, however long a large layer took
_MAX_PAUSE_SECONDS = 0.1


class Intake:
    """Reserves pages for each layer, and pauses between layers so that sequences keep the cores.

    `running` says whether a sequence runs whose steps need the cores. Used on the event loop.
    """

    def __init__(self, reserve: ReservePages, running: Callable[[], bool]) -> None:
        self.reserve = reserve
        self._running = running

    async def pause(self, worked_seconds: float) -> None:
        """Pause after `worked_seconds` of work on an arriving cache, if sequences run.

        Nothing is read meanwhile, so that flow control holds the sender up.
        """
        if self._running():
            await asyncio.sleep(min(_MAX_PAUSE_SECONDS, _PAUSE_RATIO * worked_seconds))

"""Equal requests at the same time share one computation."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from kvstore.tiers.content_key import ContentKey
from services.prefill.sharing.shared_prefill import Flight, Reader
from services.runtime.process import metrics


class Flights:
    """All flights that somebody reads, by content key. Used on the event loop alone.

    A reader that leaves does not disturb the others; the last one to leave ends the work.
    """

    def __init__(self) -> None:
        self._flights: dict[ContentKey, tuple[Flight, asyncio.Task[None]]] = {}

    @contextlib.asynccontextmanager
    async def join(
        self,
        key: ContentKey,
        prepare: Callable[[], Flight],
        work: Callable[[Flight], Awaitable[None]],
    ) -> AsyncIterator[tuple[Flight, Reader]]:
        """Read the flight of this key until the block ends; `work` fills one that is new."""
        if key in self._flights:
            metrics.PREFILLS_SHARED.inc()
        else:
            fresh = prepare()
            self._flights[key] = fresh, asyncio.create_task(self._run(key, fresh, work))
        flight, task = self._flights[key]
        try:
            with flight.reading() as reader:
                yield flight, reader
        finally:
            if flight.abandoned:
                self._forget(key, flight)
                flight.stop()
                task.cancel()
                # what was computed for a caller who left has ended when the call has
                await asyncio.wait((task,))

    async def _run(
        self, key: ContentKey, flight: Flight, work: Callable[[Flight], Awaitable[None]]
    ) -> None:
        try:
            await work(flight)
        except Exception as error:
            # the next request tries again
            self._forget(key, flight)
            flight.fail(error)

    def _forget(self, key: ContentKey, flight: Flight) -> None:
        if key in self._flights and self._flights[key][0] is flight:
            del self._flights[key]

"""Equal requests at the same time share one computation."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from kvstore.tiers.content_key import ContentKey
from services.prefill.sharing.shared_prefill import SharedPrefill, Subscriber
from services.runtime.process import metrics


class InFlightPrefills:
    """All shared prefills that have a subscriber, by content key. Used on the event loop alone.

    A subscriber that ends does not disturb the others; with the last one the computation ends.
    """

    def __init__(self) -> None:
        self._prefills: dict[ContentKey, tuple[SharedPrefill, asyncio.Task[None]]] = {}

    @contextlib.asynccontextmanager
    async def join(
        self,
        key: ContentKey,
        prepare: Callable[[], SharedPrefill],
        work: Callable[[SharedPrefill], Awaitable[None]],
    ) -> AsyncIterator[tuple[SharedPrefill, Subscriber]]:
        """Subscribe to the prefill of this key until the block ends.

        If there is none, `prepare` makes it and a task runs `work` to compute its layers.
        """
        if key in self._prefills:
            metrics.PREFILLS_SHARED.inc()
        else:
            prepared = prepare()
            self._prefills[key] = prepared, asyncio.create_task(self._run(key, prepared, work))
        shared, task = self._prefills[key]
        try:
            with shared.subscribe() as subscriber:
                yield shared, subscriber
        finally:
            if shared.abandoned:
                self._forget(key, shared)
                shared.stop.set()
                task.cancel()
                # the call ends only after its computation has
                await asyncio.wait((task,))

    async def _run(
        self,
        key: ContentKey,
        shared: SharedPrefill,
        work: Callable[[SharedPrefill], Awaitable[None]],
    ) -> None:
        try:
            await work(shared)
        except Exception as error:
            # the next request tries again
            self._forget(key, shared)
            shared.fail(error)

    def _forget(self, key: ContentKey, shared: SharedPrefill) -> None:
        if key in self._prefills and self._prefills[key][0] is shared:
            del self._prefills[key]

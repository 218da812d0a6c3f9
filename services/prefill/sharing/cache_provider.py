"""The provider of caches: from an equal request in progress, from a store, or computed."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from headwise.v1 import prefill_pb2
from kvstore.tiers import Hit
from kvstore.tiers.content_key import ContentKey
from services.prefill.compute.computation import Computation
from services.prefill.job import PrefillJob
from services.prefill.sharing.in_flight_prefills import InFlightPrefills
from services.prefill.sharing.prefill_queue import PrefillQueue, QueueSlot
from services.prefill.sharing.shared_prefill import SharedPrefill, Subscriber
from services.prefill.sharing.unread_caches import UnreadCaches
from services.prefill.store.cache_store import CacheStore
from services.runtime.model.served_model import ServedModel
from services.runtime.process import metrics

# share of a request's remaining time that a lookup in the store may take
_STORE_SHARE = 0.5


class CacheProvider:
    """Joins, finds or computes the cache of a job. Used on the event loop alone."""

    def __init__(
        self,
        served: ServedModel,
        computation: Computation,
        queue: PrefillQueue,
        store: CacheStore,
        *,
        unread: UnreadCaches,
        keeps_prompts: bool,
    ) -> None:
        self._served = served
        self._computation = computation
        self._queue = queue
        self._store = store
        self._unread = unread
        self._keeps_prompts = keeps_prompts
        self._in_flight = InFlightPrefills()

    @contextlib.asynccontextmanager
    async def open(
        self, job: PrefillJob, namespace: str, within_seconds: float | None
    ) -> AsyncIterator[tuple[ContentKey, SharedPrefill, Subscriber]]:
        """Subscribe to the shared prefill of this job until the block ends.

        `within_seconds` is the time that the request has left; a store may take half of it.
        """
        header = job.header(self._served)
        key = ContentKey.of(header.fingerprint, namespace)
        store_seconds = None if within_seconds is None else within_seconds * _STORE_SHARE

        async def work(shared: SharedPrefill) -> None:
            lookup = await self._store.lookup(key, header.fingerprint, store_seconds)
            if isinstance(lookup, Hit):
                metrics.PREFILLS_REUSED.inc()
                shared.reuse(lookup.cache)
            else:
                await self._compute(key, job, shared)

        def prepare() -> SharedPrefill:
            return SharedPrefill(header)

        async with self._in_flight.join(key, prepare, work) as (shared, subscriber):
            yield key, shared, subscriber

    async def _compute(self, key: ContentKey, job: PrefillJob, shared: SharedPrefill) -> None:
        tenant = key.namespace
        # the cache counts as unread before the next prompt may begin
        with contextlib.ExitStack() as held:
            async with self._queue.slot(tenant) as slot:
                report = await self._run(job, slot, shared)
                if report is None:
                    return
                held.enter_context(self._unread.hold(tenant, shared))
            shared.finish(report)
            if self._keeps_prompts:
                self._store.keep_later(key, shared.cache)
            await shared.left()

    async def _run(
        self, job: PrefillJob, slot: QueueSlot, shared: SharedPrefill
    ) -> prefill_pb2.PrefillReport | None:
        """Compute the prompt, giving way to other tenants between chunks."""
        shared.begin()

        def progress(tokens: int) -> None:
            shared.progress(tokens)
            slot.give_way(shared.stop)

        return await self._computation.run(
            job,
            slot.waited_seconds,
            emit=shared.publish,
            progress=progress,
            stop=shared.stop,
        )

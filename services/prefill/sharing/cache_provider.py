"""Where a context comes from: a flight of equal requests, a store, or the model."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from headwise.v1 import prefill_pb2
from kvstore.tiers import Hit
from kvstore.tiers.content_key import ContentKey
from services.prefill.compute.computation import Computation
from services.prefill.job import PrefillJob
from services.prefill.sharing.in_flight_prefills import Flights
from services.prefill.sharing.prefill_queue import Turns
from services.prefill.sharing.shared_prefill import Flight, Reader
from services.prefill.store.leased_caches import Keeper
from services.runtime.model.served_model import ServedModel
from services.runtime.process import metrics

# a store that does not answer may take this share of the time a request has left
_STORE_SHARE = 0.5


class Contexts:
    """Used on the event loop alone."""

    def __init__(
        self,
        served: ServedModel,
        computation: Computation,
        turns: Turns,
        keeper: Keeper,
        *,
        limit_bytes: int,
        keeps_prompts: bool,
    ) -> None:
        self._served = served
        self._computation = computation
        self._turns = turns
        self._keeper = keeper
        self._limit_bytes = limit_bytes
        self._keeps_prompts = keeps_prompts
        self._flights = Flights()

    @contextlib.asynccontextmanager
    async def open(
        self, job: PrefillJob, namespace: str, within_seconds: float | None
    ) -> AsyncIterator[tuple[ContentKey, Flight, Reader]]:
        """Take part in the flight of this context until the block ends.

        `within_seconds` is the time left to whoever begins it, of which a store may take a share.
        """
        header = job.header(self._served)
        key = ContentKey.of(header.fingerprint, namespace)
        patience = None if within_seconds is None else within_seconds * _STORE_SHARE

        async def work(flight: Flight) -> None:
            lookup = await self._keeper.store.find(key, header.fingerprint, patience)
            if isinstance(lookup, Hit):
                _reuse(flight, lookup)
            else:
                await self._compute(key, job, flight)

        def prepare() -> Flight:
            return Flight(header, self._limit_bytes)

        async with self._flights.join(key, prepare, work) as (flight, reader):
            yield key, flight, reader

    async def _compute(self, key: ContentKey, job: PrefillJob, flight: Flight) -> None:
        async with self._turns.turn() as queue_seconds:
            flight.begin()
            await self._computation.run(job, flight, queue_seconds)
            if self._keeps_prompts and flight.report is not None:
                self._keeper.store.keep_later(key, flight.cache)
            # a receiver that stops reading holds the line up, not memory
            await flight.delivered()


def _reuse(flight: Flight, hit: Hit) -> None:
    metrics.PREFILLS_REUSED.inc()
    flight.begin()
    flight.take(hit.cache)
    flight.finish(prefill_pb2.PrefillReport(reused=True))

"""Readers of one flight all get everything; the last to leave ends it."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch

from headwise.v1 import prefill_pb2
from kvstore.cache import Fingerprint, HeadRows, LayerShape, ModelFingerprint, RaggedLayer
from kvstore.rules import RetentionRule
from kvstore.tiers.content_key import ContentKey
from kvstore.wire import CacheHeader
from services.prefill.compute.stopped import PrefillStopped
from services.prefill.sharing.in_flight_prefills import Flights
from services.prefill.sharing.shared_prefill import Flight, Reader
from tests.observe import wait_until

_SECONDS = 10
_MODEL = ModelFingerprint("model", "", "a" * 64, "b" * 64, "float32")
_HEADER = CacheHeader(Fingerprint(_MODEL, "c" * 64, "full", "{}"), (LayerShape(1, 1, 4),) * 8, 5)
_KEY = ContentKey.of(_HEADER.fingerprint)


def _layer() -> RaggedLayer:
    rows = torch.zeros(5, 4)
    positions = torch.arange(5, dtype=torch.int32)
    return RaggedLayer.of_heads([HeadRows(RetentionRule(full=True), rows, rows, positions)])


_LAYER_BYTES = _layer().nbytes


class Producer(threading.Thread):
    """Publishes so many layers, as the computing thread does."""

    def __init__(self, flight: Flight, layers: int) -> None:
        super().__init__(daemon=True)
        self.published = 0
        self.was_stopped = False
        self._flight = flight
        self._layers = layers
        self.start()

    def run(self) -> None:
        try:
            for _ in range(self._layers):
                self._flight.publish(_layer())
                self.published += 1
        except PrefillStopped:
            self.was_stopped = True


async def _settle(producer: Producer, published: int) -> None:
    """So many layers get in, and then no more."""
    what = f"{published} layers"
    reached = lambda: producer.published >= published  # noqa: E731
    await asyncio.to_thread(wait_until, reached, _SECONDS, what)
    await asyncio.sleep(0.1)
    assert producer.published == published


async def _read(flight: Flight, reader: Reader, layers: int) -> None:
    count = 0
    async for _ in flight.layers(reader):
        reader.took(_LAYER_BYTES)
        count += 1
        if count == layers:
            return


async def test_a_reader_that_stops_holds_the_computation_up_unless_another_reads_on() -> None:
    flight = Flight(_HEADER, 2 * _LAYER_BYTES)
    with flight.reading() as slow, flight.reading() as quick:
        producer = Producer(flight, 8)
        await _settle(producer, 2)
        await _read(flight, quick, 3)
        await _settle(producer, 5)
        # who is behind the other changes nothing
        await _read(flight, slow, 2)
        await _settle(producer, 5)
        await _read(flight, quick, 3)
        await _settle(producer, 8)
    flight.stop()


async def test_who_joins_late_gets_everything() -> None:
    flight = Flight(_HEADER, 1 << 20)
    with flight.reading():
        producer = Producer(flight, 8)
        await _settle(producer, 8)
        with flight.reading() as late:
            flight.finish(prefill_pb2.PrefillReport())
            async with asyncio.timeout(_SECONDS):
                assert len([layer async for layer in flight.layers(late)]) == 8
        assert flight.cache.next_position == 5
        assert len(flight.cache.layers) == 8


async def test_stopping_frees_a_producer_that_waits() -> None:
    flight = Flight(_HEADER, 1)
    with flight.reading():
        producer = Producer(flight, 8)
        await _settle(producer, 1)
        flight.stop()
        await asyncio.to_thread(producer.join, _SECONDS)
    assert producer.was_stopped


class Work:
    """What a flight does: waits to be let go."""

    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self, flight: Flight) -> None:
        self.begun += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error:
            raise self.error
        flight.begin()
        flight.finish(prefill_pb2.PrefillReport())


async def _visit(flights: Flights, work: Work) -> int:
    async with flights.join(_KEY, lambda: Flight(_HEADER, 1), work) as (flight, reader):
        await flight.begun(reader)
        return len([one async for one in flight.layers(reader)])


async def test_one_that_leaves_does_not_disturb_the_others_and_the_last_ends_it() -> None:
    flights, work = Flights(), Work()
    visits = [asyncio.create_task(_visit(flights, work)) for _ in range(3)]
    await asyncio.sleep(0.01)
    visits[0].cancel()
    await asyncio.sleep(0.01)
    assert (work.begun, work.cancelled) == (1, 0)
    for visit in visits[1:]:
        visit.cancel()
    await asyncio.wait(visits)
    assert (work.begun, work.cancelled) == (1, 1)
    work.gate.set()
    # the next one begins anew
    async with asyncio.timeout(_SECONDS):
        await _visit(flights, work)
    assert work.begun == 2


async def test_a_failure_is_told_to_all_and_the_next_request_tries_again() -> None:
    flights, work = Flights(), Work()
    work.error = ValueError("not this time")
    visits = [asyncio.create_task(_visit(flights, work)) for _ in range(3)]
    await asyncio.sleep(0.01)
    work.gate.set()
    for visit in visits:
        with pytest.raises(ValueError, match="not this time"):
            await asyncio.wait_for(visit, _SECONDS)
    work.error = None
    async with asyncio.timeout(_SECONDS):
        await _visit(flights, work)
    assert work.begun == 2

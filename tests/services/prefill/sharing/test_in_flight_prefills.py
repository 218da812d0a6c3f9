"""All subscribers of a shared prefill receive every layer; it ends with the last of them."""

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
from services.prefill.compute.prefiller import PrefillStopped
from services.prefill.sharing.in_flight_prefills import InFlightPrefills
from services.prefill.sharing.shared_prefill import SharedPrefill
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
    """A thread that publishes `layers` layers, as the computing thread does."""

    def __init__(self, shared: SharedPrefill, layers: int) -> None:
        super().__init__(daemon=True)
        self.published = 0
        self.was_stopped = False
        self._shared = shared
        self._layers = layers
        self.start()

    def run(self) -> None:
        try:
            for _ in range(self._layers):
                self._shared.publish(_layer())
                self.published += 1
        except PrefillStopped:
            self.was_stopped = True


async def _settle(producer: Producer, published: int) -> None:
    """Wait until exactly `published` layers are published."""
    what = f"{published} layers"
    reached = lambda: producer.published >= published  # noqa: E731
    await asyncio.to_thread(wait_until, reached, _SECONDS, what)
    await asyncio.sleep(0.1)
    assert producer.published == published


async def test_subscribers_that_read_nothing_do_not_hold_the_computation_up() -> None:
    shared = SharedPrefill(_HEADER)
    with shared.subscribe():
        producer = Producer(shared, 8)
        await _settle(producer, 8)
        assert shared.nbytes == 8 * _LAYER_BYTES


async def test_a_late_subscriber_receives_every_layer() -> None:
    shared = SharedPrefill(_HEADER)
    with shared.subscribe():
        producer = Producer(shared, 8)
        await _settle(producer, 8)
        with shared.subscribe() as late:
            shared.finish(prefill_pb2.PrefillReport())
            async with asyncio.timeout(_SECONDS):
                assert len([layer async for layer in shared.layers(late)]) == 8
        assert shared.cache.next_position == 5
        assert len(shared.cache.layers) == 8


async def test_a_stop_ends_the_computation_at_its_next_layer() -> None:
    shared = SharedPrefill(_HEADER)
    shared.stop.set()
    producer = Producer(shared, 8)
    await asyncio.to_thread(producer.join, _SECONDS)
    assert (producer.was_stopped, producer.published) == (True, 0)


async def test_a_failure_interrupts_a_subscriber_that_is_writing() -> None:
    shared, told = SharedPrefill(_HEADER), list[BaseException]()
    with shared.subscribe() as subscriber:
        subscriber.on_failure = told.append
        shared.fail(ArithmeticError())
    assert [type(error) for error in told] == [ArithmeticError]


class Work:
    """The work of a shared prefill, which waits for `gate`."""

    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self, shared: SharedPrefill) -> None:
        self.begun += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error:
            raise self.error
        shared.begin()
        shared.finish(prefill_pb2.PrefillReport())


async def _visit(in_flight: InFlightPrefills, work: Work) -> int:
    async with in_flight.join(_KEY, lambda: SharedPrefill(_HEADER), work) as (
        shared,
        subscriber,
    ):
        await shared.begun(subscriber)
        return len([layer async for layer in shared.layers(subscriber)])


async def test_the_computation_ends_with_its_last_subscriber() -> None:
    in_flight, work = InFlightPrefills(), Work()
    visits = [asyncio.create_task(_visit(in_flight, work)) for _ in range(3)]
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
        await _visit(in_flight, work)
    assert work.begun == 2


async def test_a_failure_reaches_all_subscribers_and_the_next_request_tries_again() -> None:
    in_flight, work = InFlightPrefills(), Work()
    work.error = ValueError("not this time")
    visits = [asyncio.create_task(_visit(in_flight, work)) for _ in range(3)]
    await asyncio.sleep(0.01)
    work.gate.set()
    for visit in visits:
        with pytest.raises(ValueError, match="not this time"):
            await asyncio.wait_for(visit, _SECONDS)
    work.error = None
    async with asyncio.timeout(_SECONDS):
        await _visit(in_flight, work)
    assert work.begun == 2

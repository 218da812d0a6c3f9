"""The outbox keeps order, bounds what waits, and lets go of whoever waits when stopped."""

from __future__ import annotations

import asyncio
import threading

import pytest

from headwise.v1.cache_pb2 import CacheFrame
from headwise.v1.prefill_pb2 import PrefillResponse
from services.prefill.outbox import Outbox
from services.prefill.stopped import PrefillStopped
from tests.observe import wait_until

_SECONDS = 10


def _response(number: int, size: int = 100) -> PrefillResponse:
    return PrefillResponse(frame=CacheFrame(layer=number, payload=bytes(size)))


class Producer(threading.Thread):
    """Puts so many messages and closes, as the computing thread does."""

    def __init__(self, outbox: Outbox, count: int) -> None:
        super().__init__(daemon=True)
        self.put = 0
        self.was_stopped = False
        self._outbox = outbox
        self._count = count
        self.start()

    def run(self) -> None:
        try:
            for number in range(self._count):
                self._outbox.put(_response(number))
                self.put += 1
        except PrefillStopped:
            self.was_stopped = True
        finally:
            self._outbox.close()


async def _settle(producer: Producer, put: int) -> None:
    """So many messages get in, and then no more."""
    what = f"{put} messages"
    await asyncio.to_thread(wait_until, lambda: producer.put >= put, _SECONDS, what)
    await asyncio.sleep(0.1)
    assert producer.put == put


async def test_messages_come_in_order_until_the_end() -> None:
    outbox = Outbox(250)
    Producer(outbox, 40)
    async with asyncio.timeout(_SECONDS):
        assert [r.frame.layer async for r in outbox.messages()] == list(range(40))


async def test_no_more_waits_than_the_limit_and_one_message() -> None:
    outbox = Outbox(250)
    producer = Producer(outbox, 40)
    # 100 bytes and a few of framing each: the third is the first at or beyond 250
    await _settle(producer, 3)
    messages = outbox.messages()
    async with asyncio.timeout(_SECONDS):
        await anext(messages)
        await anext(messages)
    # room is made when the consumer comes back, so one of the two taken still counts
    await _settle(producer, 4)
    outbox.stop()
    await messages.aclose()


async def test_a_message_larger_than_the_limit_still_passes() -> None:
    outbox = Outbox(1)
    Producer(outbox, 3)
    async with asyncio.timeout(_SECONDS):
        assert len([r async for r in outbox.messages()]) == 3


async def test_stopping_frees_a_producer_that_waits() -> None:
    outbox = Outbox(1)
    producer = Producer(outbox, 5)
    await _settle(producer, 1)
    outbox.stop()
    await asyncio.to_thread(producer.join, _SECONDS)
    assert producer.was_stopped


async def test_nothing_is_put_once_stopped() -> None:
    outbox = Outbox(1000)
    outbox.stop()
    with pytest.raises(PrefillStopped):
        outbox.put(_response(0))

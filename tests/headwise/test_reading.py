"""Leaving a read early: the call is cancelled and the read seen to its end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from headwise.reading import messages, read_message
from headwise.v1 import decode_pb2, decode_pb2_grpc
from headwise.v1.decode_pb2 import GenerateResponse
from tests.headwise.fake_service import delta, serving


def _one_then_silence(call: int, context: grpc.ServicerContext) -> Iterator[GenerateResponse]:
    yield delta("a")
    ended = threading.Event()
    context.add_callback(ended.set)
    assert ended.wait(10)


def _two(call: int, context: grpc.ServicerContext) -> Iterator[GenerateResponse]:
    yield from (delta("a"), delta("b"))


class _Watched:
    """A call whose reads are counted as they begin and as they end, however they end."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.begun = self.ended = 0
        self.cancelled_outside = False

    async def read(self) -> Any:
        self.begun += 1
        try:
            return await self.call.read()
        except asyncio.CancelledError:
            # by the call from within, never by its reader from outside
            task = asyncio.current_task()
            assert task is not None
            self.cancelled_outside = task.cancelling() > 0
            raise
        finally:
            self.ended += 1

    def cancel(self) -> None:
        self.call.cancel()


def _call(channel: grpc.aio.Channel) -> _Watched:
    stub = decode_pb2_grpc.DecodeServiceStub(channel)
    return _Watched(stub.Generate(decode_pb2.GenerateRequest(text="x")))


async def test_messages_are_all_read() -> None:
    with serving(_two) as (_, target):
        async with grpc.aio.insecure_channel(target) as channel:
            texts = [message.delta.text async for message in messages(_call(channel))]
    assert texts == ["a", "b"]


@pytest.mark.parametrize("how", ["cancel", "timeout"])
async def test_a_read_that_is_left_ends_before_its_reader(how: str) -> None:
    with serving(_one_then_silence) as (_, target):
        async with grpc.aio.insecure_channel(target) as channel:
            call = _call(channel)
            await read_message(call)
            reader = asyncio.create_task(read_message(call))
            if how == "timeout":
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(reader, 0.05)
            else:
                await asyncio.sleep(0.05)
                reader.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await reader
            assert call.begun == call.ended == 2
            assert not call.cancelled_outside
            assert call.call.cancelled()

"""An arriving cache is read on only when there is room for the next of its layers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from headwise import Overloaded, Refused
from headwise.v1 import cache_pb2, prefill_pb2
from kvstore.pool import PageCount, PagePool, SequencePages
from kvstore.wire import WireLimits
from services.decode.link.prefill_source import PrefillSource
from services.decode.link.reception import ExpectedCache
from services.decode.memory.arbiter import MemoryArbiter
from services.decode.memory.intake import Intake
from services.runtime.model.served_model import ServedModel
from services.runtime.serving.convert import describe_model
from tests.faults.fake_prefill import FakePrefill
from tests.faults.recording import record
from tests.services.decode.engine.engine_parts import load_served, new_pool
from tests.services.decode.memory.arbiters import new_arbiter

_PROMPT = tuple(range(2, 90))


class RecordedCall:
    """Counts what has been read of it."""

    def __init__(self, messages: Sequence[bytes]) -> None:
        self._messages = messages
        self.read_count = 0

    async def read(self) -> object:
        if self.read_count == len(self._messages):
            return grpc.aio.EOF
        self.read_count += 1
        return self._messages[self.read_count - 1]


@pytest.fixture(scope="module")
def served(tiny_model: Path) -> ServedModel:
    return load_served(tiny_model)


@pytest.fixture
def pool(served: ServedModel) -> PagePool:
    return new_pool(served, pages=64)


@pytest.fixture
def arbiter(pool: PagePool) -> MemoryArbiter[Any]:
    return new_arbiter(pool, reservation_timeout_seconds=0.5)


@pytest.fixture
async def receive(
    served: ServedModel, arbiter: MemoryArbiter[Any]
) -> AsyncIterator[Callable[[RecordedCall, SequencePages], asyncio.Task[object]]]:
    limits = WireLimits(max_tokens=1000, max_layers=9, max_cache_bytes=1 << 30)
    source = PrefillSource("127.0.0.1:1", served, limits=limits, stall_seconds=5)

    intake = Intake(arbiter.reserve_for_arrival, lambda: False)

    def start(call: RecordedCall, pages: SequencePages) -> asyncio.Task[object]:
        return asyncio.create_task(source._receive(call, ExpectedCache.of(_PROMPT), pages, intake))

    yield start
    await source.close()


async def test_a_full_pool_holds_the_stream_up_until_pages_come_free(
    served: ServedModel,
    pool: PagePool,
    arbiter: MemoryArbiter[Any],
    receive: Callable[[RecordedCall, SequencePages], asyncio.Task[object]],
) -> None:
    call = RecordedCall(record(served, _PROMPT, "full"))
    # the first of two layers takes 22 pages, and so many are left for it
    other = await arbiter.admit(1, None, lambda: pool.open(0, PageCount(40, 40)))
    pages = await arbiter.admit(1, None, lambda: pool.open(len(_PROMPT)))
    receiving = receive(call, pages)
    await asyncio.sleep(0.1)
    held_up_at = call.read_count
    # all but the report and the trailer
    assert held_up_at == len(call._messages) - 2
    assert pages.row_counts() == ((88, 88), (0, 0))
    await asyncio.sleep(0.1)
    assert call.read_count == held_up_at
    other.release()
    arbiter.release_answers()
    await receiving
    assert pages.row_counts() == ((88, 88), (88, 88))


async def test_an_arriving_cache_is_given_up_after_its_timeout(
    served: ServedModel,
    pool: PagePool,
    arbiter: MemoryArbiter[Any],
    receive: Callable[[RecordedCall, SequencePages], asyncio.Task[object]],
) -> None:
    await arbiter.admit(1, None, lambda: pool.open(0, PageCount(40, 40)))
    pages = await arbiter.admit(1, None, lambda: pool.open(len(_PROMPT)))
    with pytest.raises(Overloaded) as caught:
        await receive(RecordedCall(record(served, _PROMPT, "full")), pages)
    assert caught.value.reason == "POOL_EXHAUSTED"
    pages.release()
    assert pool.free_pages == 24


class HeldIntake(Intake):
    """Rests until it is let go."""

    def __init__(self, arbiter: MemoryArbiter[Any]) -> None:
        super().__init__(arbiter.reserve_for_arrival, lambda: True)
        self.worked: list[float] = []
        self.go = asyncio.Event()

    async def pause(self, worked_seconds: float) -> None:
        self.worked.append(worked_seconds)
        await self.go.wait()


async def test_the_stream_is_not_read_while_a_layer_waits_for_memory(
    served: ServedModel, pool: PagePool, arbiter: MemoryArbiter[Any]
) -> None:
    limits = WireLimits(max_tokens=1000, max_layers=9, max_cache_bytes=1 << 30)
    source = PrefillSource("127.0.0.1:1", served, limits=limits, stall_seconds=0.2)
    call, intake = RecordedCall(record(served, _PROMPT, "full")), HeldIntake(arbiter)
    pages = await arbiter.admit(1, None, lambda: pool.open(len(_PROMPT)))
    receiving = asyncio.create_task(source._receive(call, ExpectedCache.of(_PROMPT), pages, intake))
    # longer than a sender may be silent: it is held up, and not stalled
    await asyncio.sleep(0.3)
    assert pages.row_counts() == ((88, 88), (0, 0))
    held_up_at = call.read_count
    intake.go.set()
    await receiving
    await source.close()
    assert pages.row_counts() == ((88, 88), (88, 88))
    assert call.read_count > held_up_at
    assert len(intake.worked) == 2
    assert min(intake.worked) > 0


@pytest.mark.parametrize(("formats", "served_by_it"), [((), True), ((2, 9), True), ((9,), False)])
async def test_decode_goes_on_only_with_a_prefill_whose_caches_it_reads(
    served: ServedModel, formats: Sequence[int], served_by_it: bool
) -> None:
    description = prefill_pb2.PrefillServiceDescribeResponse(
        model=describe_model(served), versions=cache_pb2.Versions(cache_formats=formats)
    )
    with FakePrefill(description.SerializeToString()) as prefill:
        source = PrefillSource(prefill.target, served, limits=WireLimits(), stall_seconds=5)
        try:
            if served_by_it:
                assert await source.describe() == description
                return
            with pytest.raises(Refused) as caught:
                await source.describe()
            assert caught.value.reason == "NO_COMMON_CACHE_FORMAT"
            assert caught.value.metadata["theirs"] == "9"
        finally:
            await source.close()

"""Single-byte damage anywhere in a recorded stream, as decode's own reader meets it.

A protobuf message gives a flipped byte more to break than a frame has: tags, lengths, unknown
fields. Whatever it breaks, the cache is refused and its pages come back.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import pytest

from kvstore.errors import CorruptCache
from kvstore.pool import PageCount, PagePool, SequencePages, pages_bound
from kvstore.wire import WireLimits
from services.decode.link.prefill_source import PrefillSource
from services.decode.link.reception import ExpectedCache
from services.decode.memory.intake import Intake
from services.runtime.model.served_model import ServedModel, load_model
from tests.faults.asking import prompt_of
from tests.faults.recording import record

POLICY = ("fastgen", {"recovery": 0.6})
PAGE_ROWS = 16


class RecordedCall:
    """A call that yields messages and then ends well."""

    def __init__(self, messages: Sequence[bytes]) -> None:
        self._messages = iter(messages)

    async def read(self) -> object:
        return next(self._messages, grpc.aio.EOF)


async def _promised(pages: SequencePages, need: PageCount) -> None:
    pages.reservation.require(need)


class Receiver:
    """Decode's reader before a pool of its own."""

    def __init__(self, served: ServedModel, prompt: list[int]) -> None:
        limits = WireLimits(max_tokens=16_384, max_layers=64, max_cache_bytes=1 << 30)
        self._source = PrefillSource("127.0.0.1:1", served, limits=limits, stall_seconds=5)
        self._prompt = prompt
        self._needed = pages_bound(served.shapes, len(prompt), PAGE_ROWS)
        self.pool = PagePool(
            served.shapes, pages=self._needed.rows, page_rows=PAGE_ROWS, dtype=served.dtype
        )

    async def rows_of(self, messages: Sequence[bytes]) -> int:
        """Rows of an accepted stream; raises what decode raises. Nothing stays reserved."""
        pages = self.pool.open(len(self._prompt), self._needed)
        try:
            await self._source._receive(
                RecordedCall(messages),
                ExpectedCache.of(self._prompt),
                pages,
                Intake(_promised, lambda: False),
            )
            return self.pool.rows
        finally:
            pages.release()
            assert (self.pool.rows, self.pool.free_pages) == (0, self.pool.pages)

    async def require_refused(self, messages: Sequence[bytes], what: object) -> None:
        try:
            await self.rows_of(messages)
        except CorruptCache:
            return
        pytest.fail(f"accepted: {what}")


@pytest.fixture(scope="module")
def small(tiny_model: Path) -> tuple[ServedModel, list[int], list[bytes]]:
    """A two-layer cache of a few KiB."""
    served = load_model(str(tiny_model), dtype="float32", device="cpu")
    prompt = prompt_of(6)
    return served, prompt, record(served, prompt, *POLICY)


def places(messages: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Every byte of every message that carries a piece of the cache: message, offset."""
    for number, message in enumerate(messages):
        # the report is last but one, and nothing of a cache
        if number != len(messages) - 2:
            yield from ((number, offset) for offset in range(len(message)))


def flipped(messages: Sequence[bytes], number: int, offset: int, mask: int) -> list[bytes]:
    message = bytearray(messages[number])
    message[offset] ^= mask
    return [*messages[:number], bytes(message), *messages[number + 1 :]]


async def test_every_single_byte_of_a_small_stream(
    small: tuple[ServedModel, list[int], list[bytes]],
) -> None:
    served, prompt, messages = small
    receiver = Receiver(served, prompt)
    assert await receiver.rows_of(messages) > 0
    masks = random.Random(1)
    for number, offset in places(messages):
        # half of them one bit, which turns a tag into its neighbour, half any change
        mask = 1 << masks.randrange(8) if masks.random() < 0.5 else masks.randrange(1, 256)
        damaged = flipped(messages, number, offset, mask)
        await receiver.require_refused(damaged, (number, offset, mask))


async def test_every_truncation_of_a_small_stream(
    small: tuple[ServedModel, list[int], list[bytes]],
) -> None:
    served, prompt, messages = small
    receiver = Receiver(served, prompt)
    for number, message in enumerate(messages):
        await receiver.require_refused(messages[:number], number)
        if number != len(messages) - 2:
            for size in range(len(message)):
                cut = [*messages[:number], message[:size], *messages[number + 1 :]]
                await receiver.require_refused(cut, (number, size))


async def test_damage_to_the_report_changes_no_cache(
    small: tuple[ServedModel, list[int], list[bytes]],
) -> None:
    served, prompt, messages = small
    receiver = Receiver(served, prompt)
    rows = await receiver.rows_of(messages)
    report = len(messages) - 2
    for offset in range(len(messages[report])):
        for bit in range(8):
            try:
                assert await receiver.rows_of(flipped(messages, report, offset, 1 << bit)) == rows
            except CorruptCache:
                continue


async def test_a_thousand_random_bytes_of_a_large_stream(slow_model: Path) -> None:
    served = load_model(str(slow_model), dtype="float32", device="cpu")
    prompt = prompt_of(200)
    messages = record(served, prompt, *POLICY)
    receiver = Receiver(served, prompt)
    assert await receiver.rows_of(messages) > 0
    everywhere = list(places(messages))
    chance = random.Random(2)
    for number, offset in chance.sample(everywhere, 1000):
        mask = chance.randrange(1, 256)
        await receiver.require_refused(flipped(messages, number, offset, mask), (number, offset))

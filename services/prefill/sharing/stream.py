"""A flight as the messages of one Prefill call."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator

from headwise.v1 import prefill_pb2
from kvstore.cache import CompactCache, LayerShape
from kvstore.wire import CacheEncoder, CacheHeader, Frame
from services.prefill.sharing.shared_prefill import Flight, Reader
from services.runtime.serving.convert import fill_frame

# what became of the wish to keep a finished cache
Keep = Callable[[CompactCache], Awaitable[prefill_pb2.KeptCache]]


async def prefill_messages(
    flight: Flight, reader: Reader, keep: Keep | None
) -> AsyncGenerator[prefill_pb2.PrefillResponse, None]:
    """Header, layers as they come, what was kept, report, trailer. Raises what the flight does."""
    encoder = CacheEncoder(flight.header)
    await flight.begun(reader)
    yield _frame(encoder.header())
    index, total = 0, flight.header.tokens
    async for news in flight.layers(reader):
        if isinstance(news, int):
            report = prefill_pb2.PrefillProgress(tokens_done=news, tokens_total=total)
            yield prefill_pb2.PrefillResponse(progress=report)
            continue
        for frame in encoder.layer(index, news):
            yield _frame(frame)
            reader.took(len(frame.payload))
        index += 1
    if keep is not None:
        yield prefill_pb2.PrefillResponse(kept=await keep(flight.cache))
    yield prefill_pb2.PrefillResponse(report=flight.report)
    yield _frame(encoder.trailer())


def held_frames(cache: CompactCache, shapes: tuple[LayerShape, ...]) -> Iterator[Frame]:
    """All frames of a cache that is there."""
    encoder = CacheEncoder(CacheHeader(cache.fingerprint, shapes, cache.next_position))
    yield encoder.header()
    for index, layer in enumerate(cache.layers):
        yield from encoder.layer(index, layer)
    yield encoder.trailer()


def _frame(frame: Frame) -> prefill_pb2.PrefillResponse:
    response = prefill_pb2.PrefillResponse()
    fill_frame(response.frame, frame)
    return response

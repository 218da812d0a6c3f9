"""A shared prefill as the messages of one Prefill call."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable

from headwise.v1 import prefill_pb2
from kvstore.cache import CompactCache
from kvstore.wire import CacheEncoder, Frame
from services.prefill.sharing.shared_prefill import SharedPrefill, Subscriber
from services.runtime.serving.frames import fill_frame

# stores a complete cache and returns the outcome
Keep = Callable[[CompactCache], Awaitable[prefill_pb2.KeptCache]]


async def prefill_messages(
    shared: SharedPrefill, subscriber: Subscriber, keep: Keep | None
) -> AsyncGenerator[prefill_pb2.PrefillResponse, None]:
    """Yield header, layers with progress between them, kept cache, report and trailer.

    Raises the computation's error.
    """
    encoder = CacheEncoder(shared.header)
    await shared.begun(subscriber)
    yield _frame(encoder.header())
    index, total = 0, shared.header.tokens
    async for change in shared.layers(subscriber):
        if isinstance(change, int):
            progress = prefill_pb2.PrefillProgress(tokens_done=change, tokens_total=total)
            yield prefill_pb2.PrefillResponse(progress=progress)
            continue
        for frame in encoder.layer(index, change):
            yield _frame(frame)
        index += 1
    if keep is not None:
        yield prefill_pb2.PrefillResponse(kept=await keep(shared.cache))
    yield prefill_pb2.PrefillResponse(report=shared.report)
    yield _frame(encoder.trailer())


def _frame(frame: Frame) -> prefill_pb2.PrefillResponse:
    response = prefill_pb2.PrefillResponse()
    fill_frame(response.frame, frame)
    return response

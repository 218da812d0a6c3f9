"""A stream of prefill responses, put together into one cache."""

from __future__ import annotations

from collections.abc import Iterable

from headwise.v1 import prefill_pb2
from kvstore.cache import CompactCache, RaggedLayer
from kvstore.wire import DEFAULT_LIMITS, CacheDecoder, WireLimits
from services.runtime.serving.convert import frame_from_proto


def assemble_cache(
    responses: Iterable[prefill_pb2.PrefillResponse], limits: WireLimits = DEFAULT_LIMITS
) -> CompactCache:
    """Raises `CorruptCache` where frames are damaged or missing."""
    decoder = CacheDecoder(limits)
    layers: list[RaggedLayer] = []
    for response in responses:
        if response.HasField("frame"):
            layer = decoder.feed(frame_from_proto(response.frame))
            if layer is not None:
                layers.append(layer)
    decoder.finish()
    return CompactCache(decoder.header.fingerprint, tuple(layers), decoder.header.tokens)

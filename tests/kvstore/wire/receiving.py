"""A careful receiver of frames: it returns the cache, or raises an error."""

from __future__ import annotations

from kvstore.cache import CompactCache, LayerShape, ModelFingerprint
from kvstore.wire import DEFAULT_LIMITS, CacheDecoder, Frame, WireLimits


def receive(
    frames: list[Frame],
    limits: WireLimits = DEFAULT_LIMITS,
    model: ModelFingerprint | None = None,
    shapes: tuple[LayerShape, ...] | None = None,
) -> CompactCache:
    """The cache in the frames; raises what the decoder raises."""
    decoder = CacheDecoder(limits, model, shapes)
    layers = [layer for frame in frames if (layer := decoder.feed(frame)) is not None]
    decoder.finish()
    return CompactCache(decoder.header.fingerprint, tuple(layers), decoder.header.tokens)

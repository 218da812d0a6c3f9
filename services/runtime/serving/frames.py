"""Frames of a cache stream as protobuf messages, and a complete stream as a cache."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from google.protobuf.message import DecodeError

from headwise.v1 import cache_pb2, prefill_pb2
from kvstore.cache import CompactCache, RaggedLayer
from kvstore.errors import CorruptCache
from kvstore.wire import DEFAULT_LIMITS, CacheDecoder, Frame, FrameKind, WireLimits


def fill_frame(message: cache_pb2.CacheFrame, frame: Frame) -> None:
    """Write the frame into `message`; a message assigned to a field would be copied once more."""
    message.kind = cast(cache_pb2.FrameKind, int(frame.kind))
    message.layer = frame.layer
    message.offset = frame.offset
    message.payload = frame.payload
    message.checksum = frame.checksum


def frame_from_proto(frame: cache_pb2.CacheFrame) -> Frame:
    """Raises `CorruptCache` for a kind that this version does not know."""
    try:
        kind = FrameKind(frame.kind)
    except ValueError as error:
        raise CorruptCache(f"frame of unknown kind {frame.kind}") from error
    return Frame(kind, frame.layer, frame.offset, frame.payload, frame.checksum)


def parse_prefill_response(message: bytes) -> prefill_pb2.PrefillResponse:
    """Raises `CorruptCache` (DATA_LOSS, like other damage) where the bytes do not parse."""
    try:
        return prefill_pb2.PrefillResponse.FromString(message)
    except DecodeError as error:
        raise CorruptCache("a message of the cache stream does not parse") from error


def assemble_cache(
    responses: Iterable[prefill_pb2.PrefillResponse], limits: WireLimits = DEFAULT_LIMITS
) -> CompactCache:
    """Return the cache of a stream. Raises `CorruptCache` where frames are damaged or missing."""
    decoder = CacheDecoder(limits)
    layers: list[RaggedLayer] = []
    for response in responses:
        if response.HasField("frame"):
            layer = decoder.feed(frame_from_proto(response.frame))
            if layer is not None:
                layers.append(layer)
    decoder.finish()
    return CompactCache(decoder.header.fingerprint, tuple(layers), decoder.header.tokens)

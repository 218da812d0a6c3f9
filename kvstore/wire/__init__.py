"""Frames: how a compact cache travels. See docs/wire-format.md."""

from kvstore.wire.decoder import CacheDecoder
from kvstore.wire.encoder import CacheEncoder
from kvstore.wire.frames import MAX_PAYLOAD_BYTES, Frame, FrameKind
from kvstore.wire.header import CacheHeader
from kvstore.wire.limits import DEFAULT_LIMITS, WireLimits
from kvstore.wire.sections import payload_view

__all__ = [
    "DEFAULT_LIMITS",
    "MAX_PAYLOAD_BYTES",
    "CacheDecoder",
    "CacheEncoder",
    "CacheHeader",
    "Frame",
    "FrameKind",
    "WireLimits",
    "payload_view",
]

"""A stream of frames as a file: what gRPC's messages are on the wire, here for tests only.

Each frame is a record: kind u8, layer u32, offset u64, crc32c u32, length u32, all little-endian,
then the payload.
"""

from __future__ import annotations

import struct

from kvstore.errors import CorruptCache
from kvstore.wire import Frame, FrameKind

HEAD = struct.Struct("<BIQII")


def dump(frames: list[Frame]) -> bytes:
    return b"".join(
        HEAD.pack(f.kind, f.layer, f.offset, f.checksum, len(f.payload)) + f.payload for f in frames
    )


def parse(stream: bytes) -> list[Frame]:
    """Raises `CorruptCache` where a record is cut short or of no known kind."""
    frames, at = [], 0
    while at < len(stream):
        if len(stream) - at < HEAD.size:
            raise CorruptCache("half a record")
        kind, layer, offset, checksum, length = HEAD.unpack_from(stream, at)
        at += HEAD.size
        if kind not in list(FrameKind) or len(stream) - at < length:
            raise CorruptCache("no such record")
        frames.append(Frame(FrameKind(kind), layer, offset, stream[at : at + length], checksum))
        at += length
    return frames

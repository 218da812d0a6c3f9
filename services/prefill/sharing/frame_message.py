"""A frame as a serialized `FetchCacheResponse`, written without protobuf's own serializer.

Protobuf would copy the payload twice more. With this module and `held_messages`, which keeps
checked messages, FetchCache runs at 1.00 of the speed of a bare gRPC stream of messages of the
same sizes, some 2 GB/s (`python -m benchmarks.shipping`, docs/results/speed.md).
"""

from __future__ import annotations

import struct

from headwise.v1 import cache_pb2, store_pb2
from kvstore.wire import Frame

_VARINT, _BYTES, _FIXED32 = 0, 2, 5
_FIXED = struct.Struct("<I")


def frame_message(frame: Frame) -> bytes:
    """The message byte for byte as protobuf writes it, with one copy of the payload."""
    head, tail = around_payload(frame)
    return b"".join((head, frame.payload, tail))


def around_payload(frame: Frame) -> tuple[bytes, bytes]:
    """Return the bytes before and after the payload in the frame's message."""
    numbers = ((_KIND, frame.kind), (_LAYER, frame.layer), (_OFFSET, frame.offset))
    fields = b"".join(_number(tag, value) for tag, value in numbers)
    fields += _PAYLOAD + _varint(len(frame.payload))
    # proto3 leaves out fields that are zero
    tail = _CHECKSUM + _FIXED.pack(frame.checksum) if frame.checksum else b""
    nbytes = len(fields) + len(frame.payload) + len(tail)
    return _FRAME + _varint(nbytes) + fields, tail


def _number(tag: bytes, value: int) -> bytes:
    return tag + _varint(value) if value else b""


def _varint(value: int) -> bytes:
    """Encode a number in base 128, with the lowest seven bits first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _tag(message: type[cache_pb2.CacheFrame | store_pb2.FetchCacheResponse], name: str) -> bytes:
    field = message.DESCRIPTOR.fields_by_name[name]
    kinds = {field.TYPE_BYTES: _BYTES, field.TYPE_MESSAGE: _BYTES, field.TYPE_FIXED32: _FIXED32}
    return _varint(field.number << 3 | kinds.get(field.type, _VARINT))


_FRAME = _tag(store_pb2.FetchCacheResponse, "frame")
_KIND, _LAYER, _OFFSET, _PAYLOAD, _CHECKSUM = (
    _tag(cache_pb2.CacheFrame, name) for name in ("kind", "layer", "offset", "payload", "checksum")
)

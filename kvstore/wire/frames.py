"""The frame: the unit that travels, at most 1 MiB of payload under a checksum of its own."""

from __future__ import annotations

import dataclasses
import enum

import google_crc32c

from kvstore.errors import CorruptCache

MAX_PAYLOAD_BYTES = 1 << 20

# the C extension runs at 20 GiB/s, the pure Python fallback at a few MiB/s: slower than the network
if google_crc32c.implementation != "c":
    raise ImportError("google_crc32c has no C extension here; install a wheel that brings it")


class FrameKind(enum.IntEnum):
    """The kind of a payload; 0 is left for `unspecified`. A layer's sections come in this order.

    The trailer is the last frame in spite of its number.
    """

    HEADER = 1
    INDEX = 2
    KEYS = 3
    VALUES = 4
    POSITIONS = 5
    SCORES = 6
    FLAGS = 7
    TRAILER = 8
    LOG_WEIGHTS = 9


@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """A piece of the stream.

    `offset` is in bytes from the start of its section of its `layer`; header and trailer carry
    zero for both. `checksum` is the crc32c of `payload`. The payload is bytes, not a view: the
    checksum and the message that carries it take nothing else, so one copy serves both.
    """

    kind: FrameKind
    layer: int
    offset: int
    payload: bytes
    checksum: int

    @classmethod
    def of(cls, kind: FrameKind, payload: bytes, layer: int = 0, offset: int = 0) -> Frame:
        """A frame with its checksum filled in."""
        return cls(kind, layer, offset, payload, crc32c(payload))

    def require_sound(self) -> None:
        """Raise `CorruptCache` unless the payload has a legal size and matches its checksum."""
        if not 0 < len(self.payload) <= MAX_PAYLOAD_BYTES:
            raise CorruptCache(f"payload of {len(self.payload)} bytes in a frame")
        if crc32c(self.payload) != self.checksum:
            raise CorruptCache(f"checksum of a frame of kind {int(self.kind)} does not match")


def crc32c(piece: bytes, before: int = 0) -> int:
    """CRC-32C (Castagnoli, RFC 3720) of the bytes that gave `before`, followed by `piece`."""
    return int(google_crc32c.extend(before, piece))

"""Messages of a cache in memory: checked and summed once, afterwards only concatenated.

`frame_message` states the measured speed that justifies this module.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator

from kvstore.cache import CompactCache, LayerShape
from kvstore.wire import CacheEncoder, CacheHeader, Frame, FrameKind, payload_view
from services.prefill.sharing.frame_message import around_payload

_CONTROL = (FrameKind.HEADER, FrameKind.INDEX, FrameKind.TRAILER)
# a message: the bytes before the payload, the payload in its tensor, the bytes after it
_Piece = tuple[bytes, bytes | memoryview, bytes]


class HeldMessages:
    """Keeps the messages of every cache that was read to its end, except the tensors' payloads.

    A frame's entry takes some hundred bytes and is freed with its cache. Used on the event loop
    alone. The tensors of a cache never change.
    """

    def __init__(self, shapes: tuple[LayerShape, ...]) -> None:
        self._shapes = shapes
        self._pieces: weakref.WeakKeyDictionary[CompactCache, list[_Piece]] = (
            weakref.WeakKeyDictionary()
        )

    def __len__(self) -> int:
        return len(self._pieces)

    def of(self, cache: CompactCache) -> Iterator[bytes]:
        """Yield the serialized `FetchCacheResponse`s of a cache, each made on demand."""
        pieces = self._pieces.get(cache)
        return self._first(cache) if pieces is None else map(b"".join, pieces)

    def _first(self, cache: CompactCache) -> Iterator[bytes]:
        pieces: list[_Piece] | None = []
        for frame in _frames(cache, self._shapes):
            head, tail = around_payload(frame)
            yield b"".join((head, frame.payload, tail))
            payload = _payload(cache, frame)
            if payload is None:
                # the payload is a copy, and keeping it would hold the cache twice
                pieces = None
            elif pieces is not None:
                pieces.append((head, payload, tail))
        if pieces is not None:
            self._pieces[cache] = pieces


def _frames(cache: CompactCache, shapes: tuple[LayerShape, ...]) -> Iterator[Frame]:
    encoder = CacheEncoder(CacheHeader(cache.fingerprint, shapes, cache.next_position))
    yield encoder.header()
    for index, layer in enumerate(cache.layers):
        yield from encoder.layer(index, layer)
    yield encoder.trailer()


def _payload(cache: CompactCache, frame: Frame) -> bytes | memoryview | None:
    """The payload in the memory of its tensor, or None where the tensor had to be copied."""
    if frame.kind in _CONTROL:
        return frame.payload
    return payload_view(cache.layers[frame.layer], frame)

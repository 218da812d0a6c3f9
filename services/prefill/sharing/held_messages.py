"""The messages of a cache that is held: checked and summed once, then only copied together."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

from kvstore.cache import CompactCache, LayerShape
from kvstore.wire import Frame, FrameKind, payload_view
from services.prefill.sharing.frame_message import around_payload
from services.prefill.sharing.stream import held_frames

_CONTROL = (FrameKind.HEADER, FrameKind.INDEX, FrameKind.TRAILER)
# of one message: what goes before the payload, the payload where it lies, what goes after it
_Piece = tuple[bytes, bytes | memoryview, bytes]


class HeldMessages:
    """Remembers of every cache that was read to its end all but the payloads of its tensors.

    What is remembered, some hundred bytes a frame, goes when the cache does. Used on the event
    loop alone. A cache's tensors never change.
    """

    def __init__(self, shapes: tuple[LayerShape, ...]) -> None:
        self._shapes = shapes
        self._pieces: weakref.WeakKeyDictionary[CompactCache, list[_Piece]] = (
            weakref.WeakKeyDictionary()
        )

    def __len__(self) -> int:
        return len(self._pieces)

    def of(self, cache: CompactCache) -> Iterator[bytes]:
        """Serialized `FetchCacheResponse`s, each made when it is asked for."""
        known = self._pieces.get(cache)
        return self._first(cache) if known is None else map(b"".join, known)

    def _first(self, cache: CompactCache) -> Iterator[bytes]:
        pieces: list[_Piece] | None = []
        for frame in held_frames(cache, self._shapes):
            head, tail = around_payload(frame)
            yield b"".join((head, frame.payload, tail))
            payload = _payload(cache, frame)
            if payload is None:
                # a copy would hold the memory twice
                pieces = None
            elif pieces is not None:
                pieces.append((head, payload, tail))
        if pieces is not None:
            self._pieces[cache] = pieces


def _payload(cache: CompactCache, frame: Frame) -> bytes | memoryview | None:
    if frame.kind in _CONTROL:
        return frame.payload
    return payload_view(cache.layers[frame.layer], frame)

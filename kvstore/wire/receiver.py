"""One layer on its way in: tensors of the announced sizes, filled by frames in strict order."""

from __future__ import annotations

import torch

from kvstore.cache import RaggedLayer
from kvstore.errors import CorruptCache
from kvstore.row_codecs import KeyValueLayout
from kvstore.wire.frames import Frame, FrameKind
from kvstore.wire.index import LayerIndex
from kvstore.wire.sections import Section, byte_view, layer_of


class LayerReceiver:
    """Holds the tensors of a layer whose index was checked and whose size was admitted."""

    def __init__(
        self, layer: int, index: LayerIndex, layout: KeyValueLayout, sections: tuple[Section, ...]
    ) -> None:
        self._layer = layer
        self._index = index
        self._coding = layout
        self._tensors: dict[FrameKind, torch.Tensor] = {
            section.kind: torch.empty(section.shape, dtype=section.dtype) for section in sections
        }
        self._missing = [section for section in reversed(sections) if section.nbytes]
        self._view = memoryview(b"")
        self._received_bytes = 0
        self._open_section()

    @property
    def full(self) -> bool:
        return not self._missing

    def take(self, frame: Frame) -> None:
        """Copy the next piece in; raises `CorruptCache` for any other piece."""
        section = self._missing[-1]
        expected = (section.kind, self._layer, self._received_bytes)
        if (frame.kind, frame.layer, frame.offset) != expected:
            raise CorruptCache(f"expected {section.name} of layer {self._layer} in order")
        end = self._received_bytes + len(frame.payload)
        if end > section.nbytes:
            raise CorruptCache(f"{section.name} of layer {self._layer} is longer than announced")
        self._view[self._received_bytes : end] = frame.payload
        self._received_bytes = end
        if end == section.nbytes:
            self._missing.pop()
            self._open_section()

    def finish(self) -> RaggedLayer:
        """The layer; only once `full`."""
        assert self.full
        return layer_of(self._index, self._coding, self._tensors)

    def _open_section(self) -> None:
        self._received_bytes = 0
        if self._missing:
            self._view = byte_view(self._tensors[self._missing[-1].kind])

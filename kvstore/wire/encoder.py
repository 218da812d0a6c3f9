"""A compact cache into frames, layer by layer, while later layers are still computed."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from kvstore.cache import RaggedLayer
from kvstore.errors import CorruptCache, InvalidParameter
from kvstore.row_codecs import KeyValueLayout
from kvstore.wire.checks import require_heads, require_writable
from kvstore.wire.frames import MAX_PAYLOAD_BYTES, Frame, FrameKind
from kvstore.wire.header import CacheHeader, encode_header
from kvstore.wire.index import LayerIndex, encode_index
from kvstore.wire.sections import ROW_DTYPES, Section, byte_view, section_tensor, sections_of
from kvstore.wire.trailer import StreamTally, encode_trailer


class CacheEncoder:
    """Writes one stream: `header()`, `layer()` for each layer in order, `trailer()`.

    A layer's tensors must not change until its iterator is exhausted: a frame is cut out of them
    when it is asked for. `max_payload_bytes` may be lowered, for tests. Raises `InvalidParameter`
    for a header or a layer that a reader would refuse.
    """

    def __init__(self, header: CacheHeader, max_payload_bytes: int = MAX_PAYLOAD_BYTES) -> None:
        if not 0 < max_payload_bytes <= MAX_PAYLOAD_BYTES:
            raise InvalidParameter("max_payload_bytes", f"must be 1 to {MAX_PAYLOAD_BYTES}")
        if header.fingerprint.model.dtype not in ROW_DTYPES:
            raise InvalidParameter("header.dtype", f"must be one of {', '.join(ROW_DTYPES)}")
        self._header = header
        self._dtype = ROW_DTYPES[header.fingerprint.model.dtype]
        self._max_payload_bytes = max_payload_bytes
        self._header_frame = _control_frame(FrameKind.HEADER, encode_header(header))
        self._tally = StreamTally(self._header_frame.payload)
        self._next_layer = 0
        self._finished_layers = 0
        self._rows = 0

    @property
    def payload_bytes(self) -> int:
        """Payload bytes of all index and tensor frames made so far."""
        return self._tally.payload_bytes

    def header(self) -> Frame:
        return self._header_frame

    def layer(self, index: int, layer: RaggedLayer) -> Iterator[Frame]:
        """The frames of layer `index`; checked now, cut as they are consumed."""
        if index != self._next_layer or index >= len(self._header.shapes):
            raise InvalidParameter("layer", f"{index} came instead of {self._next_layer}")
        announced = LayerIndex.of(layer)
        payload = encode_index(announced, self._header.fingerprint.format_version)
        shape = self._header.shapes[index]
        try:
            require_heads(announced, shape.kv_heads, self._header.tokens)
        except CorruptCache as error:
            raise InvalidParameter("layer", str(error)) from error
        layout = KeyValueLayout(self._header.codec, shape.head_size, self._dtype)
        sections = sections_of(announced, layout)
        require_writable(layer, sections, layout)
        index_frame = _control_frame(FrameKind.INDEX, payload, index)
        self._next_layer += 1
        return self._frames(index_frame, layer, sections)

    def trailer(self) -> Frame:
        """The last frame; every layer's frames must have been taken."""
        if self._finished_layers != len(self._header.shapes):
            missing = len(self._header.shapes) - self._finished_layers
            raise InvalidParameter("trailer", f"{missing} layers have not been written")
        return _control_frame(FrameKind.TRAILER, encode_trailer(self._tally.trailer(self._rows)))

    def _frames(
        self, index_frame: Frame, layer: RaggedLayer, sections: tuple[Section, ...]
    ) -> Iterator[Frame]:
        self._tally.add(index_frame)
        yield index_frame
        for section in sections:
            if section.nbytes:
                yield from self._cut(section, section_tensor(layer, section), index_frame.layer)
        self._rows += layer.rows
        self._finished_layers += 1

    def _cut(self, section: Section, tensor: torch.Tensor, layer: int) -> Iterator[Frame]:
        view = byte_view(tensor.detach().cpu().contiguous())
        for offset in range(0, section.nbytes, self._max_payload_bytes):
            payload = bytes(view[offset : offset + self._max_payload_bytes])
            frame = Frame.of(section.kind, payload, layer, offset)
            self._tally.add(frame)
            yield frame


def _control_frame(kind: FrameKind, payload: bytes, layer: int = 0) -> Frame:
    """Header, index and trailer are never cut."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise InvalidParameter(kind.name.lower(), f"takes {len(payload)} bytes, more than a frame")
    return Frame.of(kind, payload, layer)

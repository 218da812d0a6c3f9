"""Frames into a compact cache; believes nothing it has not checked."""

from __future__ import annotations

from kvstore.cache import LayerShape, ModelFingerprint, RaggedLayer
from kvstore.errors import CorruptCache, FingerprintMismatch
from kvstore.row_codecs import KeyValueLayout, RowCodec
from kvstore.wire.checks import require_contents, require_heads, require_same_shapes
from kvstore.wire.frames import Frame, FrameKind
from kvstore.wire.header import CacheHeader, parse_header
from kvstore.wire.index import read_index
from kvstore.wire.limits import WireLimits
from kvstore.wire.receiver import LayerReceiver
from kvstore.wire.sections import row_dtype, sections_of
from kvstore.wire.strict_json import ObjectReader
from kvstore.wire.trailer import StreamTally, require_trailer


class CacheDecoder:
    """Reads one stream, frame by frame, in the only order there is.

    Sizes are known and within `limits` before anything is allocated. Any fault raises
    `CorruptCache`, `LimitExceeded` or `FingerprintMismatch` and ends the stream for good. The
    layers that it returns belong to the caller, who must not answer from them before `complete`.
    """

    def __init__(
        self,
        limits: WireLimits,
        expected_model: ModelFingerprint | None = None,
        expected_shapes: tuple[LayerShape, ...] | None = None,
        expected_codec: RowCodec | None = None,
    ) -> None:
        self._limits = limits
        self._expected_codec = expected_codec
        self._expected_model = expected_model
        self._expected_shapes = expected_shapes
        self._header: CacheHeader | None = None
        self._tally = StreamTally(b"")
        self._receiver: LayerReceiver | None = None
        self._next_layer = 0
        self._cache_bytes = 0
        self._rows = 0
        self._complete = False
        self._refused = False

    @property
    def header(self) -> CacheHeader:
        """The contents of the header frame. Raises `CorruptCache` before that frame has come."""
        if self._header is None:
            raise CorruptCache("the stream has no header yet")
        return self._header

    @property
    def complete(self) -> bool:
        """True once the trailer agreed with everything received, and nothing came after it."""
        return self._complete and not self._refused

    def feed(self, frame: Frame) -> RaggedLayer | None:
        """Take the next frame; returns the layer that it completed, if it did.

        A layer whose heads are all empty is completed by its index.
        """
        if self._refused:
            raise CorruptCache("an earlier frame of this stream was refused")
        # whatever is raised below, memory errors included, ends this stream
        self._refused = True
        frame.require_sound()
        layer = self._accept(frame)
        self._refused = False
        return layer

    def finish(self) -> None:
        """The stream has ended; raise `CorruptCache` unless it was complete."""
        if not self.complete:
            raise CorruptCache("the stream ended before its trailer")

    def _accept(self, frame: Frame) -> RaggedLayer | None:
        if self._complete:
            raise CorruptCache("a frame came after the trailer")
        if self._header is None:
            self._take_header(frame)
            return None
        if self._receiver is not None:
            return self._take_rows(self._receiver, frame)
        if self._next_layer < len(self._header.shapes):
            return self._take_index(self._header, frame)
        self._take_trailer(frame)
        return None

    def _take_header(self, frame: Frame) -> None:
        _require_place(frame, FrameKind.HEADER, 0)
        header = parse_header(frame.payload)
        self._limits.admit(header.tokens, len(header.shapes))
        if self._expected_model is not None:
            self._expected_model.require_same(header.fingerprint.model)
        row_dtype(header.fingerprint.model.dtype)
        codec, expected = header.codec, self._expected_codec
        if expected is not None and codec != expected:
            raise FingerprintMismatch("codec", expected.name, codec.name)
        if self._expected_shapes is not None:
            require_same_shapes(self._expected_shapes, header.shapes)
        self._tally = StreamTally(frame.payload)
        self._header = header

    def _take_index(self, header: CacheHeader, frame: Frame) -> RaggedLayer | None:
        _require_place(frame, FrameKind.INDEX, self._next_layer)
        shape = header.shapes[self._next_layer]
        version = header.fingerprint.format_version
        index = read_index(ObjectReader.parse(frame.payload, "index"), version)
        require_heads(index, shape.kv_heads, header.tokens)
        dtype = row_dtype(header.fingerprint.model.dtype)
        layout = KeyValueLayout(header.codec, shape.head_size, dtype)
        sections = sections_of(index, layout)
        self._cache_bytes += sum(section.nbytes for section in sections)
        self._limits.admit_bytes(self._cache_bytes)
        self._tally.add(frame)
        self._rows += index.total_rows
        self._receiver = LayerReceiver(self._next_layer, index, layout, sections)
        return self._completed(self._receiver)

    def _take_rows(self, receiver: LayerReceiver, frame: Frame) -> RaggedLayer | None:
        receiver.take(frame)
        self._tally.add(frame)
        return self._completed(receiver)

    def _completed(self, receiver: LayerReceiver) -> RaggedLayer | None:
        if not receiver.full:
            return None
        layer = receiver.finish()
        require_contents(layer, self.header.tokens)
        self._receiver = None
        self._next_layer += 1
        return layer

    def _take_trailer(self, frame: Frame) -> None:
        _require_place(frame, FrameKind.TRAILER, 0)
        require_trailer(frame.payload, self._tally.trailer(self._rows))
        self._complete = True


def _require_place(frame: Frame, kind: FrameKind, layer: int) -> None:
    if (frame.kind, frame.layer, frame.offset) != (kind, layer, 0):
        raise CorruptCache(f"expected the {kind.name.lower()} of layer {layer}")

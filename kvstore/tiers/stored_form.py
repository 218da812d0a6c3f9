"""A cache as a safetensors head and body, in one pass over its bytes either way.

The same bytes rest in files and in the shared stores, so whatever a store gives back can be saved
to a file and opened by anyone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from kvstore.cache import CompactCache, Fingerprint, ModelFingerprint
from kvstore.errors import CorruptCache, FingerprintMismatch, InvalidParameter
from kvstore.row_codecs import KeyValueLayout, RowCodec
from kvstore.tiers.file_layout import FileMetadata, checksum_of, tensor_name
from kvstore.tiers.safetensors_head import SafetensorsHead, TensorPlace, places_of
from kvstore.wire.checks import require_contents, require_heads, require_writable
from kvstore.wire.frames import FrameKind, crc32c
from kvstore.wire.header import MAX_WIDTH
from kvstore.wire.index import LayerIndex
from kvstore.wire.limits import WireLimits
from kvstore.wire.sections import (
    byte_view,
    layer_of,
    row_dtype,
    section_tensor,
    sections_of,
)

# the checksum takes bytes, so each piece is a copy: small enough for the processor's cache, and
# large enough to be a chunk of its own in a shared store
PIECE_BYTES = 1 << 20


class CacheWriter:
    """Takes `pieces()` to their end, then has the `head()` that goes before them.

    The cache's tensors must not change until then. Raises `InvalidParameter` for a cache that no
    reader would take.
    """

    def __init__(self, cache: CompactCache) -> None:
        self._metadata, self._tensors = _contents(cache)
        self._places = places_of(self._tensors)
        self._checksums: dict[str, int] = {}
        # the digest has always the same length
        self.head_bytes = len(self._head("0" * 64))

    @property
    def body_bytes(self) -> int:
        return SafetensorsHead(self._places, {}).body_bytes

    def pieces(self) -> Iterator[bytes]:
        """The body in order, each piece at most `PIECE_BYTES`."""
        for name in self._places:
            tensor = self._tensors[name].detach().cpu().contiguous()
            view = byte_view(tensor) if tensor.numel() else memoryview(b"")
            checksum = 0
            for begin in range(0, len(view), PIECE_BYTES):
                piece = bytes(view[begin : begin + PIECE_BYTES])
                checksum = crc32c(piece, checksum)
                yield piece
            self._checksums[name] = checksum

    def head(self) -> bytes:
        """Return the head, with the digest of the pieces that were read."""
        # in the order of layers and sections, which is not that of the body
        sums = ((self._places[name].nbytes, self._checksums[name]) for name in self._tensors)
        return self._head(self._metadata.sealed(sums).sha256)

    def _head(self, sha256: str) -> bytes:
        metadata = FileMetadata(self._metadata.header, self._metadata.index, sha256)
        return SafetensorsHead(self._places, metadata.as_mapping()).encode()


class CacheReader:
    """Checks a head, says how large the body is, and makes a cache of the body.

    Raises `CorruptCache`, `LimitExceeded` and `FingerprintMismatch`, all before the body's memory
    is needed, and `CorruptCache` once it is seen.
    """

    def __init__(
        self, head: bytes, limits: WireLimits, expected_model: ModelFingerprint | None = None
    ) -> None:
        parsed = SafetensorsHead.parse(head)
        self._metadata = FileMetadata.of(parsed.metadata)
        self._fingerprint, self._tokens, sizes = self._metadata.identity()
        self._indexes = self._metadata.indexes()
        limits.admit(self._tokens, len(self._indexes))
        if expected_model is not None:
            expected_model.require_same(self._fingerprint.model)
        self._codings = self._codings_of(parsed.places, sizes)
        self._layers = self._placed_layers(parsed.places)
        self.body_bytes = parsed.body_bytes
        limits.admit_bytes(self.body_bytes)

    @property
    def fingerprint(self) -> Fingerprint:
        return self._fingerprint

    def cache(self, body: torch.Tensor) -> CompactCache:
        """The cache whose tensors are views of `body`, uint8 `[body_bytes]`, which it owns now."""
        if body.numel() != self.body_bytes:
            raise CorruptCache(f"the body has {body.numel()} bytes, not {self.body_bytes}")
        view = byte_view(body) if body.numel() else memoryview(b"")
        places = (place for layer in self._layers for place in layer.values())
        sums = ((place.nbytes, checksum_of(view[place.begin : place.end])) for place in places)
        if self._metadata.sealed(sums) != self._metadata:
            raise CorruptCache("the digest of the file does not match")
        layers = tuple(
            layer_of(index, layout, {kind: _view(body, place) for kind, place in places.items()})
            for index, layout, places in zip(
                self._indexes, self._codings, self._layers, strict=True
            )
        )
        for layer in layers:
            require_contents(layer, self._tokens)
        return CompactCache(self._fingerprint, layers, self._tokens)

    def _placed_layers(
        self, places: Mapping[str, TensorPlace]
    ) -> list[dict[FrameKind, TensorPlace]]:
        """Each layer's places in the order of its sections; there must be just those."""
        layers = [
            _places_of_layer(places, number, index, layout, self._tokens)
            for number, (index, layout) in enumerate(zip(self._indexes, self._codings, strict=True))
        ]
        if sum(map(len, layers)) != len(places):
            raise CorruptCache("the file has other tensors than its index")
        return layers

    def _codings_of(
        self, places: Mapping[str, TensorPlace], sizes: tuple[int, ...] | None
    ) -> list[KeyValueLayout]:
        """Each layer's layout; its head size is that of the keys where they are not coded."""
        dtype, layers = row_dtype(self._fingerprint.model.dtype), len(self._indexes)
        codec = RowCodec.parse(self._fingerprint.codec)
        if sizes is None:
            sizes = tuple(_key_width(places, number) for number in range(layers))
        if len(sizes) != layers:
            raise CorruptCache(f"{len(sizes)} head sizes for {layers} layers")
        return [KeyValueLayout(codec, size, dtype) for size in sizes]


def _contents(cache: CompactCache) -> tuple[FileMetadata, dict[str, torch.Tensor]]:
    """Return the metadata, without digest, and every tensor by name, checked."""
    try:
        metadata = FileMetadata.describing(cache)
        identity, tokens, _ = metadata.identity()
        dtype, codec = row_dtype(identity.model.dtype), RowCodec.parse(identity.codec)
        tensors: dict[str, torch.Tensor] = {}
        for number, (layer, index) in enumerate(zip(cache.layers, metadata.indexes(), strict=True)):
            layout = KeyValueLayout(codec, layer.head_size, dtype)
            sections = sections_of(index, layout)
            require_writable(layer, sections, layout)
            require_heads(index, layer.kv_heads, tokens)
            require_contents(layer, tokens)
            tensors |= {tensor_name(number, s): section_tensor(layer, s) for s in sections}
    # ValueError: a number that JSON cannot spell
    except (CorruptCache, FingerprintMismatch, ValueError) as error:
        raise InvalidParameter("cache", str(error)) from error
    return metadata, tensors


def _places_of_layer(
    places: Mapping[str, TensorPlace],
    layer: int,
    index: LayerIndex,
    layout: KeyValueLayout,
    tokens: int,
) -> dict[FrameKind, TensorPlace]:
    """Return the places of a layer's tensors after checking their shape and dtype."""
    if not index.rows:
        raise CorruptCache(f"layer {layer} has no heads")
    require_heads(index, len(index.rows), tokens)
    found = {}
    for section in sections_of(index, layout):
        place = places.get(tensor_name(layer, section))
        if place is None or (place.shape, place.dtype) != (section.shape, section.dtype):
            raise CorruptCache(f"{tensor_name(layer, section)} is not what the index says")
        found[section.kind] = place
    return found


def _key_width(places: Mapping[str, TensorPlace], layer: int) -> int:
    keys = places.get(f"layers.{layer}.keys")
    if keys is None or len(keys.shape) != 2 or not 0 < keys.shape[1] <= MAX_WIDTH:
        raise CorruptCache(f"layer {layer} has no keys of two axes")
    return keys.shape[1]


def _view(body: torch.Tensor, place: TensorPlace) -> torch.Tensor:
    part = body[place.begin : place.end]
    if place.begin % place.dtype.itemsize:
        # another writer may not align
        part = part.clone()
    return part.view(place.dtype).view(place.shape)

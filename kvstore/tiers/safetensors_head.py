"""The head of a safetensors file: eight bytes of length, then JSON that says where tensors lie.

Written and read here, because a cache must also pass through stores that are no files, and its
checksums must be taken on the way: the library's own functions take a path, or give no metadata.
Source: https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Mapping, Sequence

import torch

from kvstore.errors import CorruptCache
from kvstore.tiers.file_layout import DTYPE_NAMES
from kvstore.wire.strict_json import ObjectReader

_LENGTH = struct.Struct("<Q")
LENGTH_BYTES = _LENGTH.size
# what the library itself accepts
MAX_HEAD_BYTES = 100_000_000
_ALIGNMENT = 8
_MAX_OFFSET = 2**63 - 1
_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


@dataclasses.dataclass(frozen=True, slots=True)
class TensorPlace:
    """A tensor in the body; `begin` in bytes from the body's start."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def end(self) -> int:
        return self.begin + self.nbytes


@dataclasses.dataclass(frozen=True, slots=True)
class SafetensorsHead:
    """Every tensor's place by name, in the order in which they lie, and the metadata."""

    places: Mapping[str, TensorPlace]
    metadata: Mapping[str, str]

    @property
    def body_bytes(self) -> int:
        return max((place.end for place in self.places.values()), default=0)

    def encode(self) -> bytes:
        """The head with its length in front, padded so that the body is aligned."""
        fields: dict[str, object] = {"__metadata__": dict(self.metadata)}
        for name, place in self.places.items():
            fields[name] = {
                "dtype": DTYPE_NAMES[place.dtype],
                "shape": list(place.shape),
                "data_offsets": [place.begin, place.end],
            }
        text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        return _LENGTH.pack(len(text)) + text

    @classmethod
    def parse(cls, head: bytes) -> SafetensorsHead:
        """Parse all bytes before the body. Raises `CorruptCache`."""
        if len(head) != head_bytes(head):
            raise CorruptCache("not a safetensors file: the head has another length")
        reader = ObjectReader.parse(head[LENGTH_BYTES:], "safetensors head")
        metadata = _read_metadata(reader)
        places = {name: _read_place(reader.member(name)) for name in reader.names()}
        _require_gapless(list(places.values()))
        return cls(places, metadata)


def head_bytes(beginning: bytes) -> int:
    """Length of the head, its own length field included, from the first eight bytes."""
    if len(beginning) < LENGTH_BYTES:
        raise CorruptCache("not a safetensors file: too short")
    (length,) = _LENGTH.unpack_from(beginning)
    if length > MAX_HEAD_BYTES:
        raise CorruptCache("not a safetensors file: its head is too long")
    return LENGTH_BYTES + int(length)


def places_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorPlace]:
    """One after another, the widest elements first, so that all are aligned."""
    places = {}
    begin = 0
    for name in sorted(tensors, key=lambda name: -tensors[name].element_size()):
        tensor = tensors[name]
        places[name] = TensorPlace(tensor.dtype, tuple(tensor.shape), begin)
        begin = places[name].end
    return places


def _read_metadata(reader: ObjectReader) -> dict[str, str]:
    if "__metadata__" not in reader.names():
        raise CorruptCache("a safetensors file, but not a cache")
    texts = reader.member("__metadata__")
    return {name: texts.text(name) for name in texts.names()}


def _read_place(reader: ObjectReader) -> TensorPlace:
    dtype = _DTYPES.get(reader.text("dtype"))
    if dtype is None:
        raise CorruptCache("a tensor has a dtype that no cache has")
    shape = reader.integers("shape", 0, _MAX_OFFSET)
    offsets = reader.integers("data_offsets", 0, _MAX_OFFSET)
    reader.close()
    place = TensorPlace(dtype, shape, offsets[0] if offsets else 0)
    if offsets != (place.begin, place.end):
        raise CorruptCache("a tensor's offsets do not fit its shape")
    return place


def _require_gapless(places: Sequence[TensorPlace]) -> None:
    end = 0
    for place in sorted(places, key=lambda place: (place.begin, place.end)):
        if place.begin != end:
            raise CorruptCache("the tensors overlap or leave a gap")
        end = place.end

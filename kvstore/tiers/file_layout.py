"""The layout of a cache in a safetensors file: names, metadata, digest.

Tensors are named `layers.<i>.keys` and so on. The metadata holds the header (a wire header without
the layers' shapes, which the tensors show), the indexes of all layers, and a digest of everything.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Iterable, Mapping

import torch

from kvstore.cache import CompactCache, Fingerprint, canonical_json
from kvstore.errors import CorruptCache
from kvstore.row_codecs import MODEL_ROWS
from kvstore.wire.frames import crc32c
from kvstore.wire.header import MAX_WIDTH, identity_fields, read_identity
from kvstore.wire.index import LayerIndex, index_fields, read_index
from kvstore.wire.sections import Section
from kvstore.wire.strict_json import ObjectReader

# safetensors' names of the dtypes a cache may hold
DTYPE_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint8: "U8",
}

_KEYS = ("headwise.header", "headwise.index", "headwise.sha256")
# the checksum takes bytes, so each piece is copied; this size stays in the processor's cache
_PIECE_BYTES = 1 << 18
# bytes and crc32c of a tensor
_DIGEST_RECORD = struct.Struct("<QI")


@dataclasses.dataclass(frozen=True, slots=True)
class FileMetadata:
    """The three texts beside the tensors; `sha256` is lower-case hex."""

    header: str
    index: str
    sha256: str = ""

    @classmethod
    def describing(cls, cache: CompactCache) -> FileMetadata:
        """Describe a cache, without the digest. Raises ValueError for NaN and infinities."""
        indexes = [index_fields(LayerIndex.of(layer)) for layer in cache.layers]
        identity = identity_fields(cache.fingerprint, cache.next_position)
        if cache.fingerprint.codec != MODEL_ROWS.name:
            # coded rows do not show it
            identity["head_sizes"] = [layer.head_size for layer in cache.layers]
        return cls(canonical_json(identity), canonical_json({"layers": indexes}))

    @classmethod
    def of(cls, metadata: Mapping[str, str] | None) -> FileMetadata:
        if metadata is None or set(metadata) != set(_KEYS):
            raise CorruptCache("a safetensors file, but not a cache")
        return cls(*(metadata[key] for key in _KEYS))

    def as_mapping(self) -> dict[str, str]:
        return dict(zip(_KEYS, (self.header, self.index, self.sha256), strict=True))

    def sealed(self, checksums: Iterable[tuple[int, int]]) -> FileMetadata:
        """Add the digest over both texts and each tensor's number of bytes and crc32c.

        The checksums come in the order of layers and sections.
        """
        digest = hashlib.sha256(self.header.encode() + self.index.encode())
        for nbytes, checksum in checksums:
            digest.update(_DIGEST_RECORD.pack(nbytes, checksum))
        return dataclasses.replace(self, sha256=digest.hexdigest())

    def identity(self) -> tuple[Fingerprint, int, tuple[int, ...] | None]:
        """Return fingerprint, number of tokens, and the layers' head sizes if rows are coded."""
        reader = ObjectReader.parse(self.header.encode(), "header")
        fingerprint, tokens = read_identity(reader)
        sizes = None
        if fingerprint.codec != MODEL_ROWS.name:
            sizes = reader.integers("head_sizes", 1, MAX_WIDTH)
        reader.close()
        return fingerprint, tokens, sizes

    def indexes(self) -> tuple[LayerIndex, ...]:
        """One a layer."""
        version = self.identity()[0].format_version
        reader = ObjectReader.parse(self.index.encode(), "index")
        indexes = tuple(read_index(layer, version) for layer in reader.objects("layers"))
        reader.close()
        return indexes


def tensor_name(layer: int, section: Section) -> str:
    return f"layers.{layer}.{section.name}"


def checksum_of(view: memoryview) -> int:
    """The crc32c of a tensor's bytes."""
    checksum = 0
    for offset in range(0, len(view), _PIECE_BYTES):
        checksum = crc32c(bytes(view[offset : offset + _PIECE_BYTES]), checksum)
    return checksum

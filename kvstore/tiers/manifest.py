"""The manifest, which a shared store holds under a content key and which names a cache's pieces.

The manifest is written last, so that an interrupted put leaves a miss. Each put gives its pieces
new names, so that the pieces of two writers are never mixed.
"""

from __future__ import annotations

import dataclasses

from kvstore.cache import canonical_json
from kvstore.errors import CorruptCache
from kvstore.wire.strict_json import ObjectReader

_VERSION = 1
# far above any cache; keeps sums within 64 bits
_MAX_BYTES = 2**48
_MAX_CHUNKS = 2**20
# Unix seconds, some thousand years ahead
_MAX_TIME = 1e11


@dataclasses.dataclass(frozen=True, slots=True)
class Manifest:
    """Sizes in bytes; the head is stored as a chunk of its own, before the body's chunks.

    `expires_at` in Unix seconds of the writer's clock.
    """

    put_id: str
    expires_at: float
    head_bytes: int
    chunk_bytes: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.head_bytes + self.body_bytes

    @property
    def body_bytes(self) -> int:
        return sum(self.chunk_bytes)

    def encode(self) -> bytes:
        return canonical_json({"version": _VERSION, **dataclasses.asdict(self)}).encode()

    @classmethod
    def parse(cls, text: bytes) -> Manifest:
        """Raises `CorruptCache` for anything that `encode` would not write."""
        reader = ObjectReader.parse(text, "manifest")
        reader.integer("version", _VERSION, _VERSION)
        manifest = cls(
            put_id=reader.text("put_id"),
            expires_at=reader.number("expires_at", 0, _MAX_TIME),
            head_bytes=reader.integer("head_bytes", 1, _MAX_BYTES),
            chunk_bytes=reader.integers("chunk_bytes", 1, _MAX_BYTES),
        )
        reader.close()
        if len(manifest.chunk_bytes) > _MAX_CHUNKS or not manifest.put_id.isalnum():
            raise CorruptCache("the manifest is not one of ours")
        return manifest

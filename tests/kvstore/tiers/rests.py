"""The raw contents of stores, to be swapped, renamed and damaged behind a tier's back."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Protocol

from kvstore.tiers.bounded import BoundedTier
from kvstore.tiers.content_key import ContentKey
from kvstore.tiers.disk import DiskTier
from kvstore.tiers.ledger import Entry
from kvstore.tiers.manifest import Manifest
from kvstore.tiers.memory import MemoryTier
from kvstore.tiers.mooncake import MooncakeTier
from kvstore.tiers.redis import RedisTier

# what a store holds of one cache: by the name of the part, without that of the key
Parts = dict[str, bytes]


class Rest(Protocol):
    """The parts of caches as they lie in a store."""

    def read(self, key: ContentKey) -> Parts: ...

    def write(self, key: ContentKey, parts: Parts) -> None: ...


@dataclasses.dataclass
class DiskRest:
    """A file, which is known by its name alone."""

    tier: DiskTier

    def read(self, key: ContentKey) -> Parts:
        return {"": self._path(key).read_bytes()}

    def write(self, key: ContentKey, parts: Parts) -> None:
        self._path(key).parent.mkdir(exist_ok=True)
        self._path(key).write_bytes(parts[""])
        with self.tier._lock:
            self.tier._ledger.admit(Entry(key, len(parts[""]), None), self.tier._clock())

    def _path(self, key: ContentKey) -> pathlib.Path:
        return self.tier._path(Entry(key, 0, None))


@dataclasses.dataclass
class RedisRest:
    """A manifest and its chunks; `spread` names alone."""

    tier: RedisTier

    def read(self, key: ContentKey) -> Parts:
        begin = f"headwise:{key.namespace}:{key.digest}"
        manifest = Manifest.parse(self.tier._client.get(begin))
        names = [begin, *self.tier._chunk_names(key, manifest)]
        return {name.removeprefix(begin): self.tier._client.get(name) for name in names}

    def write(self, key: ContentKey, parts: Parts) -> None:
        for name, value in parts.items():
            self.tier._client.set(f"headwise:{key.namespace}:{key.digest}{name}", value)


@dataclasses.dataclass
class MooncakeRest:
    """A manifest and a file."""

    tier: MooncakeTier

    def read(self, key: ContentKey) -> Parts:
        begin = f"headwise:{key.namespace}:{key.digest}"
        manifest = self.tier._client.get(begin)
        put_id = self.tier._manifest(key).put_id
        return {"": manifest, f":{put_id}": self.tier._client.get(f"{begin}:{put_id}")}

    def write(self, key: ContentKey, parts: Parts) -> None:
        for name, value in parts.items():
            code = self.tier._client.upsert(f"headwise:{key.namespace}:{key.digest}{name}", value)
            assert code == 0


def rest_of(tier: object) -> Rest:
    """Return the raw contents below a tier."""
    inner = tier.inner if isinstance(tier, BoundedTier) else tier
    if isinstance(inner, DiskTier):
        return DiskRest(inner)
    if isinstance(inner, RedisTier):
        return RedisRest(inner)
    assert isinstance(inner, MooncakeTier), inner
    return MooncakeRest(inner)


def swap_in_memory(tier: MemoryTier, key: ContentKey, other: ContentKey) -> None:
    """Swap two caches of a memory tier."""
    held = tier._caches
    held[key], held[other] = held[other], held[key]

"""Caches in Mooncake Store.

    headwise:<namespace>:<digest>               the manifest
    headwise:<namespace>:<digest>:<put id>      the whole safetensors file

The store has no time to live, so the manifest's is looked at when it is read; what nobody asks for
again goes by the store's own eviction. Quotas are the store's own, too.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

import torch

from kvstore.cache import CompactCache
from kvstore.errors import CorruptCache, FingerprintMismatch, LimitExceeded
from kvstore.tiers.base import (
    STORED,
    Expected,
    Hit,
    Lookup,
    Miss,
    MissReason,
    PutResult,
    PutStatus,
)
from kvstore.tiers.content_key import ContentKey
from kvstore.tiers.deadline import Deadline
from kvstore.tiers.identity import identity_miss, miss_of
from kvstore.tiers.manifest import Manifest
from kvstore.tiers.mooncake_client import MooncakeClient
from kvstore.tiers.stored_form import CacheReader, CacheWriter
from kvstore.wire.limits import DEFAULT_LIMITS, WireLimits
from kvstore.wire.sections import byte_view

# NO_AVAILABLE_HANDLE: every segment is full
_NO_ROOM = -200
# OBJECT_NOT_FOUND
_NOT_FOUND = -704
# "for ever", as a manifest has it
_NEVER = 1e11


class MooncakeTier:
    """A `Tier` over a client that `connect_mooncake` made."""

    def __init__(
        self,
        client: MooncakeClient,
        name: str = "mooncake",
        limits: WireLimits = DEFAULT_LIMITS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._name = name
        self._limits = limits
        self._clock = clock

    @property
    def name(self) -> str:
        return self._name

    def put(
        self,
        key: ContentKey,
        cache: CompactCache,
        lifetime_seconds: float | None,
        deadline: Deadline,
    ) -> PutResult:
        writer = CacheWriter(cache)
        expires_at = _NEVER if lifetime_seconds is None else self._clock() + lifetime_seconds
        body = list(writer.pieces())
        sizes = (writer.body_bytes,) if writer.body_bytes else ()
        manifest = Manifest(secrets.token_hex(8), expires_at, writer.head_bytes, sizes)
        previous = self._manifest(key)
        deadline.require()
        code = self._client.put_parts(_file_name(key, manifest), writer.head(), *body)
        if not code:
            deadline.require()
            code = self._client.upsert(_manifest_name(key), manifest.encode())
        if code:
            status = PutStatus.FULL if code == _NO_ROOM else PutStatus.UNAVAILABLE
            return PutResult(status, f"Mooncake Store answered with code {code}")
        if isinstance(previous, Manifest):
            self._client.remove(_file_name(key, previous), True)
        return STORED

    def get(self, key: ContentKey, expected: Expected, deadline: Deadline) -> Lookup:
        manifest = self._manifest(key)
        if isinstance(manifest, Miss):
            return manifest
        if manifest.expires_at <= self._clock():
            self.delete(key, deadline)
            return Miss(MissReason.EXPIRED)
        try:
            return self._read(key, manifest, expected)
        except FingerprintMismatch as error:
            return miss_of(error)
        except (CorruptCache, LimitExceeded) as error:
            return Miss(MissReason.CORRUPT, str(error))

    def delete(self, key: ContentKey, deadline: Deadline) -> bool:
        manifest = self._manifest(key)
        # a store that was stuck meanwhile may hold something newer than what was to go
        deadline.require()
        if isinstance(manifest, Manifest):
            self._client.remove(_file_name(key, manifest), True)
        return self._client.remove(_manifest_name(key), True) in (0, _NOT_FOUND)

    def contains(self, key: ContentKey, deadline: Deadline) -> bool:
        manifest = self._manifest(key)
        return isinstance(manifest, Manifest) and manifest.expires_at > self._clock()

    def bytes_in_use(self, namespace: str | None, deadline: Deadline) -> None:
        """The store does not tell."""
        return

    def _manifest(self, key: ContentKey) -> Manifest | Miss:
        text = self._client.get(_manifest_name(key))
        if not text:
            return self._why_missing(_manifest_name(key), MissReason.ABSENT)
        try:
            return Manifest.parse(text)
        except CorruptCache as error:
            return Miss(MissReason.CORRUPT, str(error))

    def _read(self, key: ContentKey, manifest: Manifest, expected: Expected) -> Lookup:
        name = _file_name(key, manifest)
        stored = self._client.get_buffer(name)
        if stored is None:
            return self._why_missing(name, MissReason.EVICTED)
        # the store's own memory, so the body is copied out of it
        view = memoryview(stored).cast("B")  # type: ignore[arg-type]
        reader = CacheReader(bytes(view[: manifest.head_bytes]), self._limits)
        miss = identity_miss(reader.fingerprint, key, expected)
        if miss is not None:
            return miss
        if len(view) != manifest.head_bytes + reader.body_bytes:
            raise CorruptCache("the stored file is longer or shorter than its head says")
        body = torch.empty(reader.body_bytes, dtype=torch.uint8)
        if body.numel():
            byte_view(body)[:] = view[manifest.head_bytes :]
        return Hit(reader.cache(body), _finite(manifest.expires_at))

    def _why_missing(self, name: str, reason: MissReason) -> Miss:
        """An empty answer may mean that there is nothing, or nobody to ask.

        Where the name is known after all it is just being written, or its memory is gone with the
        process that lent it.
        """
        code = self._client.is_exist(name)
        if code == 0:
            return Miss(reason)
        return Miss(MissReason.UNAVAILABLE, f"Mooncake Store answered with code {code}")


def _manifest_name(key: ContentKey) -> str:
    return f"headwise:{key.namespace}:{key.digest}"


def _file_name(key: ContentKey, manifest: Manifest) -> str:
    return f"{_manifest_name(key)}:{manifest.put_id}"


def _finite(expires_at: float) -> float | None:
    return None if expires_at >= _NEVER else expires_at

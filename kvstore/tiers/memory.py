"""Stored caches in the memory of this process, without copying them."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable

import torch

from kvstore.cache import CompactCache, RaggedLayer
from kvstore.errors import CorruptCache
from kvstore.tiers.base import Expected, Hit, Lookup, Miss, MissReason, PutResult, PutStatus
from kvstore.tiers.content_key import ContentKey
from kvstore.tiers.deadline import Deadline
from kvstore.tiers.identity import identity_miss
from kvstore.tiers.ledger import Budget, Entry, Ledger

# tensors are copied if the memory behind them exceeds their own bytes by more than this share
_SLACK_RATIO = 1 / 8


class MemoryTier:
    """A `Tier` that evicts the least recently used cache; pinned caches stay.

    The budget counts the bytes of all memory that the tensors keep alive. Tensors that are small
    views of larger memory are copied first.
    """

    def __init__(
        self, budget: Budget, name: str = "memory", clock: Callable[[], float] = time.time
    ) -> None:
        self._name = name
        self._clock = clock
        self._lock = threading.Lock()
        self._ledger = Ledger(budget)
        self._caches: dict[ContentKey, CompactCache] = {}

    @property
    def name(self) -> str:
        return self._name

    @property
    def evictions(self) -> int:
        return self._ledger.evictions

    def put(
        self,
        key: ContentKey,
        cache: CompactCache,
        lifetime_seconds: float | None,
        deadline: Deadline,
    ) -> PutResult:
        now = self._clock()
        expires_at = None if lifetime_seconds is None else now + lifetime_seconds
        if resident_bytes(cache) > cache.nbytes * (1 + _SLACK_RATIO):
            cache = _copied(cache)
        with self._lock:
            status, gone = self._ledger.admit(Entry(key, resident_bytes(cache), expires_at), now)
            for entry in gone:
                del self._caches[entry.key]
            if status is PutStatus.STORED:
                self._caches[key] = cache
        return PutResult(status)

    def get(self, key: ContentKey, expected: Expected, deadline: Deadline) -> Lookup:
        with self._lock:
            self._expire()
            entry = self._ledger.peek(key, self._clock())
            if entry is None:
                return Miss(self._ledger.why_gone(key))
            cache = self._caches[key]
            try:
                miss = identity_miss(cache.fingerprint, key, expected)
            except CorruptCache as error:
                return Miss(MissReason.CORRUPT, str(error))
            if miss is not None:
                return miss
            self._ledger.touch(key)
            return Hit(cache, entry.expires_at)

    def delete(self, key: ContentKey, deadline: Deadline) -> bool:
        with self._lock:
            if self._ledger.remove(key) is not None:
                del self._caches[key]
        return True

    def contains(self, key: ContentKey, deadline: Deadline) -> bool:
        with self._lock:
            return self._ledger.peek(key, self._clock()) is not None

    def bytes_in_use(self, namespace: str | None, deadline: Deadline) -> int:
        with self._lock:
            self._expire()
            return self._ledger.bytes_in_use(namespace)

    def pin(self, key: ContentKey) -> bool:
        """Protect a cache from eviction until as many `unpin`; False if it is not here."""
        with self._lock:
            return self._ledger.pin(key, self._clock())

    def pinned(self, key: ContentKey) -> bool:
        """Whether a cache is here and pinned."""
        with self._lock:
            return self._ledger.pinned(key)

    def unpin(self, key: ContentKey) -> None:
        with self._lock:
            self._ledger.unpin(key)

    def _expire(self) -> None:
        for entry in self._ledger.expire(self._clock()):
            del self._caches[entry.key]


def resident_bytes(cache: CompactCache) -> int:
    """Return the bytes of all memory that a cache's tensors keep alive, shared memory once."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for layer in cache.layers
        for tensor in _tensors(layer)
    }
    return sum(storages.values())


def _copied(cache: CompactCache) -> CompactCache:
    layers = tuple(
        dataclasses.replace(
            layer,
            keys=layer.keys.clone(),
            values=layer.values.clone(),
            positions=layer.positions.clone(),
            scores=layer.scores.clone(),
            flags=layer.flags.clone(),
            log_weights=layer.log_weights.clone(),
        )
        for layer in cache.layers
    )
    return dataclasses.replace(cache, layers=layers)


def _tensors(layer: RaggedLayer) -> tuple[torch.Tensor, ...]:
    rows = layer.keys, layer.values, layer.positions
    return *rows, layer.scores, layer.flags, layer.log_weights

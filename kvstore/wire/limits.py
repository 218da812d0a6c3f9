"""Limits of the caches that a receiver accepts."""

from __future__ import annotations

import dataclasses

from kvstore.errors import LimitExceeded


@dataclasses.dataclass(frozen=True, slots=True)
class WireLimits:
    """Bounds on one cache, inclusive. `max_cache_bytes` counts tensor bytes, metadata included."""

    max_tokens: int = 131_072
    max_layers: int = 256
    max_cache_bytes: int = 16 << 30

    def admit(self, tokens: int, layers: int) -> None:
        """Raise `LimitExceeded` for a cache of too many tokens or layers."""
        if tokens > self.max_tokens:
            raise LimitExceeded("tokens", tokens, self.max_tokens)
        if layers > self.max_layers:
            raise LimitExceeded("layers", layers, self.max_layers)

    def admit_bytes(self, cache_bytes: int) -> None:
        """Raise `LimitExceeded` for a cache whose tensors take too much room."""
        if cache_bytes > self.max_cache_bytes:
            raise LimitExceeded("cache_bytes", cache_bytes, self.max_cache_bytes)


DEFAULT_LIMITS = WireLimits()

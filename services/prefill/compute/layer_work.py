"""The state of one layer while its prompt is computed chunk by chunk."""

from __future__ import annotations

import torch

from kvstore.cache import LayerShape
from kvstore.plans import ProfileRequest
from kvstore.profiling import Profiler


class LayerHistory:
    """Holds `[H, T, D]` keys and values; a prompt of one chunk is kept without copying."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._seen = 0
        self._keys: torch.Tensor | None = None
        self._values: torch.Tensor | None = None

    def append(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add a chunk `[H, m, D]`; return all keys and values up to its end, as views."""
        if k.shape[1] == self._tokens:
            return k, v
        if self._keys is None or self._values is None:
            shape = (k.shape[0], self._tokens, k.shape[2])
            self._keys, self._values = k.new_empty(shape), v.new_empty(shape)
        end = self._seen + k.shape[1]
        self._keys[:, self._seen : end] = k
        self._values[:, self._seen : end] = v
        self._seen = end
        return self._keys[:, :end], self._values[:, :end]


class LayerWork:
    """The history and the profiler of one layer, over all chunks of the prompt."""

    def __init__(
        self,
        request: ProfileRequest | None,
        shape: LayerShape,
        tokens: int,
        device: torch.device,
    ) -> None:
        self.history = LayerHistory(tokens)
        self.profiler = Profiler(request, shape, tokens, device) if request else None
        self.repeats = request is not None and request.repeats

"""Root-mean-square normalisation of few rows in one pass, f32 on CPU.

One call replaces six of torch: 7 µs instead of 30 for a row of 576, 61 times in each step of
SmolLM2. `small_batches` states when this module can go.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch

# arrays inside kernels, for which numba has no static types
_Array = Any

# with more values torch is faster, because it uses several threads
MAX_VALUES = 1 << 16


def small_rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """`weight [K]` · `x [..., K]` / √(mean of x² + `epsilon`), all f32 on CPU."""
    size = len(weight)
    out = x.new_empty(x.shape)
    _rms_norm(
        x.reshape(-1, size).contiguous().numpy(),
        weight.detach().numpy(),
        np.float32(epsilon),
        out.view(-1, size).numpy(),
    )
    return out


@numba.njit(fastmath={"reassoc", "contract", "nsz"}, cache=True, nogil=True)
def _rms_norm(x: _Array, weight: _Array, epsilon: float, out: _Array) -> None:
    rows, size = x.shape
    for row in range(rows):
        total = np.float32(0.0)
        for k in range(size):
            total += x[row, k] * x[row, k]
        factor = np.float32(1.0) / np.sqrt(total / np.float32(size) + epsilon)
        for k in range(size):
            out[row, k] = weight[k] * (x[row, k] * factor)

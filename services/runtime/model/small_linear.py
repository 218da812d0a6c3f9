"""The product of few rows with a large weight, f32 on CPU, at the speed of memory.

A decode step multiplies one row per sequence, so reading the weights determines its time. MKL
reads them at less than half the speed of memory (11 of 25 GB/s at one row). Here each thread reads
its own part of the weight once, in order, and prefetches. `small_batches` states when this module
can go.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from numba import prange

from kvstore.kernels.prefetch import LINE_BYTES, prefetch
from kvstore.kernels.threads import ONLY_PRANGE, match_torch_threads

# the kernels are in one file, because numba's cache on disk misses changes in other files;
# arrays inside kernels, for which numba has no static types
_Array = Any

# at 32 rows 1.4 to 2.8 times as fast as MKL, whose blocking is faster for more rows
MAX_ROWS = 32
# weights per thread, below which another thread costs more than it saves
_THREAD_WEIGHTS = 1 << 15
# partial sums in registers: four rows of the weight by up to four of the input
_BLOCK = 4
_FAST = {"reassoc", "contract", "arcp", "nsz"}
_NO_BIAS = torch.empty(0)
_LINE_FLOATS = LINE_BYTES // 4


def small_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`x [..., K]` times `weight [N, K]` transposed, plus `bias [N]`: `[..., N]`, all f32 on CPU.

    The weight is contiguous. Takes any number of rows and is meant for at most `MAX_ROWS`.
    """
    outputs, inputs = weight.shape
    out = x.new_empty(*x.shape[:-1], outputs)
    arrays = (
        x.reshape(-1, inputs).contiguous().numpy(),
        weight.detach().numpy(),
        (_NO_BIAS if bias is None else bias.detach()).numpy(),
        out.view(-1, outputs).numpy(),
    )
    max_parts = 1 + weight.numel() // _THREAD_WEIGHTS
    # a single part runs without threads, because a parallel region waits for all of them
    parts = match_torch_threads(max_parts) if max_parts > 1 else 1
    if parts == 1:
        _product(*arrays, 0, outputs)
    else:
        _shared_product(*arrays, parts)
    return out


@numba.njit(parallel=ONLY_PRANGE, cache=True, nogil=True)
def _shared_product(x: _Array, weight: _Array, bias: _Array, out: _Array, parts: int) -> None:
    """Split the outputs over threads, in multiples of a block."""
    outputs = len(weight)
    share = -(-outputs // (parts * _BLOCK)) * _BLOCK
    for part in prange(parts):
        _product(x, weight, bias, out, part * share, min(outputs, (part + 1) * share))


@numba.njit(fastmath=_FAST, cache=True, nogil=True)
def _product(
    x: _Array, weight: _Array, bias: _Array, out: _Array, first_output: int, end: int
) -> None:
    """Outputs `first_output`, a block's first, to `end` − 1 of all rows."""
    inputs, rows = weight.shape[1], len(x)
    tiles = -(-rows // _BLOCK)
    # the next block's lines, fetched in equal parts before each tile of this one
    lines = -(-_BLOCK * inputs // (_LINE_FLOATS * max(1, tiles)))
    flat = weight.reshape(-1)
    for first in range(first_output, end, _BLOCK):
        ahead = (first + _BLOCK) * inputs
        for tile in range(tiles):
            for line in range(tile * lines, (tile + 1) * lines):
                prefetch(flat, ahead + line * _LINE_FLOATS)
            row = tile * _BLOCK
            if row == rows - 1:
                _one_row(x, weight, row, first, out)
            else:
                _four_rows(x, weight, row, first, out)
        if len(bias):
            for row in range(rows):
                for n in range(first, min(first + _BLOCK, end)):
                    out[row, n] += bias[n]


@numba.njit(fastmath=_FAST, cache=True, nogil=True)
def _one_row(x: _Array, weight: _Array, row: int, n: int, out: _Array) -> None:
    """Outputs `n` to `n` + 3 of one row; those past the end are the last one again."""
    last = len(weight) - 1
    n1, n2, n3 = min(n + 1, last), min(n + 2, last), min(n + 3, last)
    s0 = s1 = s2 = s3 = np.float32(0.0)
    for k in range(x.shape[1]):
        s0 += x[row, k] * weight[n, k]
        s1 += x[row, k] * weight[n1, k]
        s2 += x[row, k] * weight[n2, k]
        s3 += x[row, k] * weight[n3, k]
    out[row, n], out[row, n1], out[row, n2], out[row, n3] = s0, s1, s2, s3


@numba.njit(fastmath=_FAST, cache=True, nogil=True)
def _four_rows(x: _Array, weight: _Array, row: int, n: int, out: _Array) -> None:
    """Outputs `n` to `n` + 3 of rows `row` to `row` + 3; past the end as in `_one_row`."""
    last, lowest = len(weight) - 1, len(x) - 1
    n1, n2, n3 = min(n + 1, last), min(n + 2, last), min(n + 3, last)
    r1, r2, r3 = min(row + 1, lowest), min(row + 2, lowest), min(row + 3, lowest)
    s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = np.float32(0.0)
    s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = np.float32(0.0)
    for k in range(x.shape[1]):
        x0, x1, x2, x3 = x[row, k], x[r1, k], x[r2, k], x[r3, k]
        w0, w1, w2, w3 = weight[n, k], weight[n1, k], weight[n2, k], weight[n3, k]
        s00 += x0 * w0
        s01 += x0 * w1
        s02 += x0 * w2
        s03 += x0 * w3
        s10 += x1 * w0
        s11 += x1 * w1
        s12 += x1 * w2
        s13 += x1 * w3
        s20 += x2 * w0
        s21 += x2 * w1
        s22 += x2 * w2
        s23 += x2 * w3
        s30 += x3 * w0
        s31 += x3 * w1
        s32 += x3 * w2
        s33 += x3 * w3
    out[row, n], out[row, n1], out[row, n2], out[row, n3] = s00, s01, s02, s03
    out[r1, n], out[r1, n1], out[r1, n2], out[r1, n3] = s10, s11, s12, s13
    out[r2, n], out[r2, n1], out[r2, n2], out[r2, n3] = s20, s21, s22, s23
    out[r3, n], out[r3, n1], out[r3, n2], out[r3, n3] = s30, s31, s32, s33

"""Column peaks on a GPU. One program owns a tile of columns: no atomics, and equal bits each time.

Bytes and operations are counted in README.md.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from kvstore.kernels.column_mass.kernel import tiles_for
from kvstore.kernels.tile_product import tile_product

_LOG2_E = math.log2(math.e)
# more than any position
_NEVER = 2**31 - 1


def column_peak(
    peaks: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    lse: torch.Tensor,
    first_position: int,
    *,
    scale: float,
    sliding_window: int | None,
) -> None:
    """See op.py. Nothing here waits for the device."""
    heads, rows, size = q.shape
    if not rows or not k.shape[1]:
        return
    tiles = tiles_for(size, q.dtype)
    offsets = lse.float().contiguous() * _LOG2_E
    _column_peak[(triton.cdiv(k.shape[1], tiles.columns), heads)](
        peaks,
        peaks.stride(0),
        peaks.stride(1),
        q,
        *q.stride(),
        k,
        *k.stride(),
        offsets,
        rows,
        k.shape[1],
        heads // k.shape[0],
        scale * _LOG2_E,
        first_position,
        _NEVER if sliding_window is None else sliding_window,
        D=size,
        BLOCK_D=max(16, triton.next_power_of_2(size)),
        BLOCK_N=tiles.columns,
        BLOCK_M=tiles.rows,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )


@triton.jit(do_not_specialize=["first_position"])
def _column_peak(
    peaks: tl.tensor,
    peak_head: int,
    peak_column: int,
    q: tl.tensor,
    q_head: int,
    q_row: int,
    q_size: int,
    k: tl.tensor,
    k_head: int,
    k_row: int,
    k_size: int,
    offsets: tl.tensor,
    rows: int,
    columns: int,
    group: int,
    scale: float,
    first_position: int,
    window: int,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
) -> None:
    """Program (column tile, query head). The exponential is taken once, of the highest exponent."""
    head = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    exists = column < columns
    size = tl.arange(0, BLOCK_D)
    keys = tl.load(
        k + head // group * k_head + column[:, None].to(tl.int64) * k_row + size[None, :] * k_size,
        mask=exists[:, None] & (size[None, :] < D),
        other=0.0,
    )
    highest = tl.full([BLOCK_N], float("-inf"), tl.float32)
    for first in range(0, rows, BLOCK_M):
        row = first + tl.arange(0, BLOCK_M)
        valid = row < rows
        queries = tl.load(
            q + head * q_head + row[None, :].to(tl.int64) * q_row + size[:, None] * q_size,
            mask=valid[None, :] & (size[:, None] < D),
            other=0.0,
        )
        offset = tl.load(offsets + head * rows + row, mask=valid, other=0.0)
        exponents = tile_product(keys, queries) * scale - offset[None, :]
        distance = first_position + row[None, :] - column[:, None]
        seen = valid[None, :] & (distance < window)
        highest = tl.maximum(highest, tl.max(tl.where(seen, exponents, float("-inf")), 1))
    target = peaks + head * peak_head + column.to(tl.int64) * peak_column
    earlier = tl.load(target, mask=exists, other=0.0)
    tl.store(target, tl.maximum(earlier, tl.exp2(highest)), mask=exists)

"""Column peaks on a GPU. One program owns a tile of columns: no atomics, and equal bits each time.

Bytes and operations are counted in README.md.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kvstore.kernels.column_mass.kernel import TileForm, tiles_for
from kvstore.kernels.tile_product import tile_product

_LOG2_E = math.log2(math.e)
# more than any position
_NEVER = 2**31 - 1


class ColumnPeaks(NamedTuple):
    """The result `[HQ, T]` and its strides."""

    data: torch.Tensor
    head: int
    column: int


class HeadRows(NamedTuple):
    """Rows of heads `[H, n, D]` and their strides."""

    data: torch.Tensor
    head: int
    row: int
    size: int


class Sizes(NamedTuple):
    """Query rows, columns, and numbers of the layer."""

    rows: int
    columns: int
    group: int
    scale: float
    window: int


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
    """Compute op.py's column peaks without waiting for the device."""
    heads, rows, size = q.shape
    if not rows or not k.shape[1]:
        return
    tiles = tiles_for(size, q.dtype)
    offsets = lse.float().contiguous() * _LOG2_E
    _column_peak[(triton.cdiv(k.shape[1], tiles.columns), heads)](
        ColumnPeaks(peaks, *peaks.stride()),
        HeadRows(q, *q.stride()),
        HeadRows(k, *k.stride()),
        offsets,
        Sizes(
            rows,
            k.shape[1],
            heads // k.shape[0],
            scale * _LOG2_E,
            _NEVER if sliding_window is None else sliding_window,
        ),
        first_position,
        FORM=TileForm(size, max(16, triton.next_power_of_2(size)), tiles.columns, tiles.rows),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )


# integers of tuples are always specialised, so the one that differs between launches is apart
@triton.jit(do_not_specialize=["first_position"])
def _column_peak(
    peaks: ColumnPeaks,
    q: HeadRows,
    k: HeadRows,
    offsets: tl.tensor,
    sizes: Sizes,
    first_position: int,
    FORM: tl.constexpr,
) -> None:
    """Program (column tile, query head). The exponential is taken once, of the highest exponent."""
    D: tl.constexpr = FORM.size
    BLOCK_D: tl.constexpr = FORM.block_d
    BLOCK_N: tl.constexpr = FORM.columns
    BLOCK_M: tl.constexpr = FORM.rows
    rows = sizes.rows
    head = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    exists = column < sizes.columns
    size = tl.arange(0, BLOCK_D)
    keys = tl.load(
        k.data
        + head // sizes.group * k.head
        + column[:, None].to(tl.int64) * k.row
        + size[None, :] * k.size,
        mask=exists[:, None] & (size[None, :] < D),
        other=0.0,
    )
    highest = tl.full([BLOCK_N], float("-inf"), tl.float32)
    for first in range(0, rows, BLOCK_M):
        row = first + tl.arange(0, BLOCK_M)
        valid = row < rows
        queries = tl.load(
            q.data + head * q.head + row[None, :].to(tl.int64) * q.row + size[:, None] * q.size,
            mask=valid[None, :] & (size[:, None] < D),
            other=0.0,
        )
        offset = tl.load(offsets + head * rows + row, mask=valid, other=0.0)
        exponents = tile_product(keys, queries) * sizes.scale - offset[None, :]
        distance = first_position + row[None, :] - column[:, None]
        seen = valid[None, :] & (distance < sizes.window)
        highest = tl.maximum(highest, tl.max(tl.where(seen, exponents, float("-inf")), 1))
    target = peaks.data + head * peaks.head + column.to(tl.int64) * peaks.column
    earlier = tl.load(target, mask=exists, other=0.0)
    tl.store(target, tl.maximum(earlier, tl.exp2(highest)), mask=exists)

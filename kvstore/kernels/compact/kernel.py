"""The gather of a layer's kept rows on a GPU: all heads, keys and values in one launch.

Bytes: each kept row is read once and written once, keys and values, `4 · R · D` elements, and 8
bytes a row for its number; no arithmetic. So the limit is the copy bandwidth, and what can be
lost to it is a row shorter than a memory transaction: neighbouring lanes copy a row together.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

# elements per program and tensor: 32 bytes for each of 128 lanes at 16 bits
_TILE_ELEMENTS = 2048


def gather_rows(
    k: torch.Tensor, v: torch.Tensor, rows: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """See op.py."""
    ends = list(itertools.accumulate(chosen.numel() for chosen in rows))
    total, size = ends[-1], k.shape[2]
    keys, values = k.new_empty(total, size), v.new_empty(total, size)
    if total:
        block = triton.next_power_of_2(size)
        tile = max(1, _TILE_ELEMENTS // block)
        _gather[(triton.cdiv(total, tile),)](
            keys,
            values,
            k,
            v,
            torch.cat(list(rows)),
            torch.tensor(ends, dtype=torch.int32).to(k.device, non_blocking=True),
            total,
            *k.stride(),
            *v.stride(),
            HEADS=len(rows),
            D=size,
            BLOCK_H=triton.next_power_of_2(max(2, len(rows))),
            BLOCK_R=tile,
            BLOCK_D=block,
        )
    return keys, values


@triton.jit
def _gather(
    keys: tl.tensor,
    values: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    rows: tl.tensor,
    ends: tl.tensor,
    total: int,
    k_head: int,
    k_row: int,
    k_size: int,
    v_head: int,
    v_row: int,
    v_size: int,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Program (tile of rows of the result), whichever heads they belong to."""
    target = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    valid = target < total
    number = tl.arange(0, BLOCK_H)
    end = tl.load(ends + number, mask=number < HEADS, other=2147483647)
    head = tl.sum((end[None, :] <= target[:, None]).to(tl.int64), 1)
    row = tl.load(rows + target, mask=valid, other=0)
    size = tl.arange(0, BLOCK_D)[None, :]
    wanted = valid[:, None] & (size < D)
    key = tl.load(k + (head * k_head + row * k_row)[:, None] + size * k_size, mask=wanted)
    value = tl.load(v + (head * v_head + row * v_row)[:, None] + size * v_size, mask=wanted)
    tl.store(keys + target[:, None] * D + size, key, mask=wanted)
    tl.store(values + target[:, None] * D + size, value, mask=wanted)

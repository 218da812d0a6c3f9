"""The gather of a layer's kept rows on a GPU: all heads, keys and values in one launch, coded.

Bytes and operations are counted in README.md.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvstore.kernels.coded_rows import INT4, MODEL, codec_number, store_coded
from kvstore.kernels.tile_product import tile_product
from kvstore.row_codecs import KeyValueLayout
from kvstore.row_codecs.rotation import hadamard

# elements per program and tensor: 32 bytes for each of 128 lanes at 16 bits
_TILE_ELEMENTS = 2048
# a program that rotates reads the rotation, too: for so many rows it pays
_ROTATED_ROWS = 64


def gather_rows(
    k: torch.Tensor, v: torch.Tensor, rows: torch.Tensor, ends: torch.Tensor, coding: KeyValueLayout
) -> tuple[torch.Tensor, torch.Tensor]:
    """See op.py. A launch, and nothing from the host."""
    total, size = len(rows), k.shape[2]
    keys = k.new_empty(total, coding.keys.width, dtype=coding.keys.storage_dtype)
    values = v.new_empty(total, coding.values.width, dtype=coding.values.storage_dtype)
    if total:
        rotated, tile = _rotates(coding), rows_a_program(coding)
        _gather[(triton.cdiv(total, tile),)](
            keys,
            values,
            k,
            v,
            # exact in every dtype
            hadamard(size).sign().to(k) if rotated else k,
            (size & -size) ** -0.5,
            rows,
            ends,
            total,
            *k.stride(),
            *v.stride(),
            KEY_CODEC=codec_number(coding.keys),
            KEY_WIDTH=coding.keys.width,
            VALUE_CODEC=codec_number(coding.values),
            VALUE_WIDTH=coding.values.width,
            HEADS=len(ends),
            D=size,
            BLOCK_H=triton.next_power_of_2(max(2, len(ends))),
            BLOCK_R=tile,
            # products want sixteen of everything
            BLOCK_D=max(16 if rotated else 1, triton.next_power_of_2(size)),
            BLOCK_HALF=max(16, triton.next_power_of_2((size + 1) // 2)),
            num_warps=4,
        )
    return keys, values


def rows_a_program(coding: KeyValueLayout) -> int:
    if _rotates(coding):
        return _ROTATED_ROWS
    return int(max(1, _TILE_ELEMENTS // triton.next_power_of_2(coding.keys.size)))


def _rotates(coding: KeyValueLayout) -> bool:
    return coding.keys.rotated or coding.values.rotated


@triton.jit
def _gather(
    keys: tl.tensor,
    values: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    signs: tl.tensor,
    spread: float,
    rows: tl.tensor,
    ends: tl.tensor,
    total: int,
    k_head: int,
    k_row: int,
    k_size: int,
    v_head: int,
    v_row: int,
    v_size: int,
    KEY_CODEC: tl.constexpr,
    KEY_WIDTH: tl.constexpr,
    VALUE_CODEC: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
) -> None:
    """Program (tile of rows of the result), whichever heads they belong to."""
    first = tl.program_id(0).to(tl.int64) * BLOCK_R
    place = tl.arange(0, BLOCK_R)
    target = first + place
    valid = target < total
    number = tl.arange(0, BLOCK_H)
    end = tl.load(ends + number, mask=number < HEADS, other=2147483647)
    head = tl.sum((end[None, :] <= target[:, None]).to(tl.int64), 1)
    row = tl.load(rows + target, mask=valid, other=0).to(tl.int64)
    size = tl.arange(0, BLOCK_D)[None, :]
    wanted = valid[:, None] & (size < D)
    key = tl.load(
        k + (head * k_head + row * k_row)[:, None] + size * k_size, mask=wanted, other=0.0
    )
    value = tl.load(
        v + (head * v_head + row * v_row)[:, None] + size * v_size, mask=wanted, other=0.0
    )
    _write(
        keys + first * KEY_WIDTH,
        key,
        place,
        valid,
        signs,
        spread,
        KEY_CODEC,
        KEY_WIDTH,
        D,
        BLOCK_D,
        BLOCK_HALF,
    )
    _write(
        values + first * VALUE_WIDTH,
        value,
        place,
        valid,
        signs,
        spread,
        VALUE_CODEC,
        VALUE_WIDTH,
        D,
        BLOCK_D,
        BLOCK_HALF,
    )


@triton.jit
def _write(
    stored: tl.tensor,
    rows: tl.tensor,
    place: tl.tensor,
    valid: tl.tensor,
    signs: tl.tensor,
    spread: float,
    CODEC: tl.constexpr,
    WIDTH: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
) -> None:
    """Rows `[BLOCK_R, BLOCK_D]` to their place in `stored`, coded; `signs` `[D, D]` rotates."""
    size = tl.arange(0, BLOCK_D)
    if CODEC == MODEL:
        wanted = valid[:, None] & (size[None, :] < D)
        tl.store(stored + place[:, None] * D + size[None, :], rows, mask=wanted)
    elif CODEC == INT4:
        HALF: tl.constexpr = (D + 1) // 2
        half = tl.arange(0, BLOCK_HALF)
        sign = signs + size[:, None] * D + half[None, :]
        low_signs = tl.load(sign, mask=(size[:, None] < D) & (half[None, :] < HALF), other=0.0)
        high_signs = tl.load(
            sign + HALF, mask=(size[:, None] < D) & (half[None, :] + HALF < D), other=0.0
        )
        low = tile_product(rows, low_signs) * spread
        high = tile_product(rows, high_signs) * spread
        store_coded(stored, place * WIDTH, low, high, valid, CODEC, D, BLOCK_HALF)
    else:
        exact = rows.to(tl.float32)
        store_coded(stored, place * WIDTH, exact, exact, valid, CODEC, D, BLOCK_D)

"""The gather of a layer's kept rows on a GPU: all heads, keys and values in one launch, coded.

Bytes and operations are counted in README.md.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

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


class CodedRows(NamedTuple):
    """Keys and values of the result, coded, `[R, width]`."""

    key_rows: torch.Tensor
    value_rows: torch.Tensor


class HeadRows(NamedTuple):
    """Rows of a layer's heads `[H, T, D]` and their strides."""

    data: torch.Tensor
    head: int
    row: int
    size: int


class Rotation(NamedTuple):
    """The rotation as `signs` `[D, D]` and the factor `spread`."""

    signs: torch.Tensor
    spread: float


class GatherForm(NamedTuple):
    """Constants of a compiled form: codecs, sizes and tiles."""

    key_codec: int
    key_width: int
    value_codec: int
    value_width: int
    heads: int
    size: int
    block_h: int
    block_r: int
    block_d: int
    block_half: int


def gather_rows(
    k: torch.Tensor, v: torch.Tensor, rows: torch.Tensor, ends: torch.Tensor, layout: KeyValueLayout
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gather rows as op.py defines, in one launch and without copies from the host."""
    total, size = len(rows), k.shape[2]
    keys = k.new_empty(total, layout.keys.width, dtype=layout.keys.storage_dtype)
    values = v.new_empty(total, layout.values.width, dtype=layout.values.storage_dtype)
    if total:
        rotated, tile = _rotates(layout), rows_a_program(layout)
        _gather[(triton.cdiv(total, tile),)](
            CodedRows(keys, values),
            HeadRows(k, *k.stride()),
            HeadRows(v, *v.stride()),
            # exact in every dtype
            Rotation(
                _signs_on(size, k.dtype, k.device) if rotated else k,
                (size & -size) ** -0.5,
            ),
            rows,
            ends,
            total,
            FORM=GatherForm(
                key_codec=codec_number(layout.keys),
                key_width=layout.keys.width,
                value_codec=codec_number(layout.values),
                value_width=layout.values.width,
                heads=len(ends),
                size=size,
                block_h=triton.next_power_of_2(max(2, len(ends))),
                block_r=tile,
                # products want sixteen of everything
                block_d=max(16 if rotated else 1, triton.next_power_of_2(size)),
                block_half=max(16, triton.next_power_of_2((size + 1) // 2)),
            ),
            num_warps=4,
        )
    return keys, values


@functools.cache
def _signs_on(size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the rotation's signs, which stay on the device; a copy would be waited for."""
    return hadamard(size).sign().to(device, dtype)


def rows_a_program(layout: KeyValueLayout) -> int:
    if _rotates(layout):
        return _ROTATED_ROWS
    return int(max(1, _TILE_ELEMENTS // triton.next_power_of_2(layout.keys.size)))


def _rotates(layout: KeyValueLayout) -> bool:
    return layout.keys.rotated or layout.values.rotated


@triton.jit
def _gather(
    out: CodedRows,
    k: HeadRows,
    v: HeadRows,
    rotation: Rotation,
    rows: tl.tensor,
    ends: tl.tensor,
    total: int,
    FORM: tl.constexpr,
) -> None:
    """Program (tile of rows of the result), whichever heads they belong to."""
    D: tl.constexpr = FORM.size
    BLOCK_R: tl.constexpr = FORM.block_r
    first = tl.program_id(0).to(tl.int64) * BLOCK_R
    place = tl.arange(0, BLOCK_R)
    target = first + place
    valid = target < total
    number = tl.arange(0, FORM.block_h)
    end = tl.load(ends + number, mask=number < FORM.heads, other=2147483647)
    head = tl.sum((end[None, :] <= target[:, None]).to(tl.int64), 1)
    row = tl.load(rows + target, mask=valid, other=0).to(tl.int64)
    size = tl.arange(0, FORM.block_d)[None, :]
    wanted = valid[:, None] & (size < D)
    key = tl.load(
        k.data + (head * k.head + row * k.row)[:, None] + size * k.size,
        mask=wanted,
        other=0.0,
    )
    value = tl.load(
        v.data + (head * v.head + row * v.row)[:, None] + size * v.size,
        mask=wanted,
        other=0.0,
    )
    to = out.key_rows + first * FORM.key_width
    _write(to, key, place, valid, rotation, FORM.key_codec, FORM.key_width, FORM)
    to = out.value_rows + first * FORM.value_width
    _write(to, value, place, valid, rotation, FORM.value_codec, FORM.value_width, FORM)


@triton.jit
def _write(
    stored: tl.tensor,
    rows: tl.tensor,
    place: tl.tensor,
    valid: tl.tensor,
    rotation: Rotation,
    CODEC: tl.constexpr,
    WIDTH: tl.constexpr,
    form: GatherForm,
) -> None:
    """Write rows `[BLOCK_R, BLOCK_D]` to `stored`, coded and rotated as the codec asks."""
    D: tl.constexpr = form.size
    BLOCK_D: tl.constexpr = form.block_d
    BLOCK_HALF: tl.constexpr = form.block_half
    size = tl.arange(0, BLOCK_D)
    if CODEC == MODEL:
        wanted = valid[:, None] & (size[None, :] < D)
        tl.store(stored + place[:, None] * D + size[None, :], rows, mask=wanted)
    elif CODEC == INT4:
        HALF: tl.constexpr = (D + 1) // 2
        half = tl.arange(0, BLOCK_HALF)
        sign = rotation.signs + size[:, None] * D + half[None, :]
        low_signs = tl.load(sign, mask=(size[:, None] < D) & (half[None, :] < HALF), other=0.0)
        high_signs = tl.load(
            sign + HALF, mask=(size[:, None] < D) & (half[None, :] + HALF < D), other=0.0
        )
        low = tile_product(rows, low_signs) * rotation.spread
        high = tile_product(rows, high_signs) * rotation.spread
        store_coded(stored, place * WIDTH, low, high, valid, CODEC, D, BLOCK_HALF)
    else:
        exact = rows.to(tl.float32)
        store_coded(stored, place * WIDTH, exact, exact, valid, CODEC, D, BLOCK_D)

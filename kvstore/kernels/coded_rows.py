"""Rows of a page inside a Triton kernel, whatever their codec; the format is docs/codecs.md.

Every code is exact in 16 bits, so products take codes as they are, and a row's scale and offset
come in afterwards: once a row instead of once an element, and nothing is rounded on the way.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from kvstore.kernels.code_conversion import (
    INT4_SCALE,
    fp8_codes,
    int4_byte,
    int4_codes,
    int4_unit,
    int4_upper,
    int8_codes,
)
from kvstore.kernels.row_pages import SCALE_WORD_BYTES, PageLayout
from kvstore.kernels.tile_product import INTERPRETED
from kvstore.row_codecs import ElementCodec, RowLayout

_CODECS = tuple(ElementCodec)
MODEL = tl.constexpr(_CODECS.index(ElementCodec.MODEL))
FP8 = tl.constexpr(_CODECS.index(ElementCodec.FP8))
INT8 = tl.constexpr(_CODECS.index(ElementCodec.INT8))
INT4 = tl.constexpr(_CODECS.index(ElementCodec.INT4))
WORD_BYTES = tl.constexpr(SCALE_WORD_BYTES)
# adding it rounds what is below 2^22 to whole numbers, halves to even
_WHOLE = tl.constexpr(12582912.0)
_NOT_FINITE = tl.constexpr(0x7F800000)


def codec_number(layout: RowLayout) -> int:
    """Return the number by which kernels know the codec."""
    return _CODECS.index(layout.codec)


class RowForm(NamedTuple):
    """Keys or values in pages, as constants of a kernel's compiled form.

    `page` and `codes`, the strides of pages and rows, and `first`, where a page's rows begin, count
    what the codec stores: elements of the model's dtype, or bytes. `scales` counts bytes.
    """

    codec: int
    page: int
    codes: int
    scales: int
    first: int


class PageForm(NamedTuple):
    """Keys and values of a page layout, as constants of a kernel's compiled form."""

    key_rows: RowForm
    value_rows: RowForm
    page_rows: int


def page_form(page_layout: PageLayout) -> PageForm:
    """Return the constants of kernels that read or write pages of this layout."""
    layout = page_layout.layout

    def rows(layout: RowLayout, first: int, scales: int) -> RowForm:
        item = layout.storage_dtype.itemsize
        return RowForm(
            codec=codec_number(layout),
            page=page_layout.page_bytes // item,
            codes=layout.code_bytes // item,
            scales=scales,
            first=first // item,
        )

    return PageForm(
        rows(layout.keys, 0, page_layout.key_scales),
        rows(layout.values, page_layout.value_offset, page_layout.value_scales),
        page_layout.rows,
    )


@triton.jit
def element_of(column: tl.tensor, CODEC: tl.constexpr, D: tl.constexpr) -> tl.tensor:
    """Return the element that a column of `load_codes` contains; D or more for none.

    int4 mixes them: `int4_codes`.
    """
    element = column
    if CODEC == INT4:
        HALF: tl.constexpr = (D + 1) // 2
        byte = int4_byte(column)
        element = tl.where(byte < HALF, byte + int4_upper(column) * HALF, D)
    return element


@triton.jit
def column_unit(column: tl.tensor, CODEC: tl.constexpr, TYPE: tl.constexpr) -> tl.tensor:
    """Return the factor of a column of `load_codes` beside the scale, f32."""
    unit = tl.full(column.shape, 1.0, tl.float32)
    if CODEC == INT4:
        if tl.bfloat16 == TYPE:
            unit = int4_unit(column)
    return unit


@triton.jit
def load_codes(
    elements: tl.tensor,
    arena: tl.tensor,
    start: tl.tensor,
    valid: tl.tensor,
    CODEC: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TYPE: tl.constexpr,
    PURE: tl.constexpr,
) -> tl.tensor:
    """Load codes of the rows that begin at `start` `[N]`, or numbers of the model, `[N, BLOCK_D]`.

    `elements` and `arena` are the same memory in the model's dtype and in bytes. Codes of fp8 and
    int4 may come in other units, which `load_scales` and `column_unit` make up for. `PURE`: whether
    products go along rows, see `code_conversion`.
    """
    if CODEC == INT4:
        HALF: tl.constexpr = (D + 1) // 2
        half = tl.arange(0, BLOCK_D // 2)[None, :]
        pair = tl.load(arena + start[:, None] + half, mask=valid[:, None] & (half < HALF), other=0)
        codes = int4_codes(pair, TYPE, PURE)
    else:
        size = tl.arange(0, BLOCK_D)[None, :]
        wanted = valid[:, None] & (size < D)
        if CODEC == MODEL:
            codes = tl.load(elements + start[:, None] + size, mask=wanted, other=0.0)
        else:
            byte = tl.load(arena + start[:, None] + size, mask=wanted, other=0)
            codes = int8_codes(byte, TYPE, PURE) if CODEC == INT8 else fp8_codes(byte, TYPE, PURE)
    return codes


@triton.jit
def scale_words(arena: tl.tensor, start: tl.tensor) -> tl.tensor:
    """Pointers to the words that begin at the bytes `start`.

    The lower half of a word is a row's scale, the upper one its offset, bfloat16 each.
    """
    return (arena + start).to(tl.pointer_type(tl.int32), bitcast=True)


@triton.jit
def load_scales(
    arena: tl.tensor,
    start: tl.tensor,
    valid: tl.tensor,
    factor: float,
    CODEC: tl.constexpr,
    TYPE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return the factor of codes of the type, and the offset to add then, f32 each.

    The first is multiplied by `factor`. Rows' words begin at `start` `[N]`.
    """
    word = tl.load(scale_words(arena, start), mask=valid, other=0)
    scale = (word << 16).to(tl.float32, bitcast=True)
    offset = ((word >> 16) << 16).to(tl.float32, bitcast=True)
    unit = factor
    if CODEC == FP8:
        unit = factor * 256.0
    elif CODEC == INT4:
        if tl.bfloat16 == TYPE:
            unit = factor * INT4_SCALE
    return scale * unit, offset


@triton.jit
def _up(values: tl.tensor) -> tl.tensor:
    """Round f32 values >= 0 up to bfloat16; return its bits in the upper half of int32."""
    bits = values.to(tl.int32, bitcast=True)
    cut = (bits >> 16) << 16
    return tl.where(cut == bits, cut, cut + 0x10000)


@triton.jit
def _down(values: tl.tensor) -> tl.tensor:
    """Round f32 values of either sign down to bfloat16; return bits as `_up` does."""
    bits = values.to(tl.int32, bitcast=True)
    cut = (bits >> 16) << 16
    return tl.where((cut == bits) | (bits >= 0), cut, cut + 0x10000)


@triton.jit
def _over(values: tl.tensor, scale: tl.tensor) -> tl.tensor:
    """Values `[K, N]` over their scale `[K]`; 0 where the scale is 0, because then they all are.

    The remainder corrects the product with an inverse (after Markstein 1990): a quotient by a
    bfloat16 is too far from the middle of two numbers to be rounded otherwise than by division.
    """
    divisor = tl.where(scale == 0.0, 1.0, scale)
    if INTERPRETED:
        # its multiply-add rounds twice
        shares = tl.div_rn(values, tl.broadcast_to(divisor[:, None], values.shape))
    else:
        # so that neither the inverse nor the remainder leaves the range of normal numbers
        moved = tl.where(divisor < 2.0**-60, 2.0**80, tl.where(divisor > 2.0**60, 2.0**-80, 1.0))
        divisor *= moved
        inverse = tl.broadcast_to((1.0 / divisor)[:, None], values.shape)
        values *= moved[:, None]
        near = values * inverse
        rest = tl.fma(-near, tl.broadcast_to(divisor[:, None], values.shape), values)
        shares = tl.fma(rest, inverse, near)
    return shares


@triton.jit
def _whole_bits(values: tl.tensor) -> tl.tensor:
    """Values rounded to whole numbers, halves to even, in the lower bits of int32."""
    return (values + _WHOLE).to(tl.int32, bitcast=True)


@triton.jit
def _whole(values: tl.tensor) -> tl.tensor:
    return (values + _WHOLE) - _WHOLE


@triton.jit
def _store_bfloat16(arena: tl.tensor, at: tl.tensor, bits: tl.tensor, valid: tl.tensor) -> None:
    """The upper half of int32 bits."""
    tl.store(arena + at, ((bits >> 16) & 255).to(tl.uint8), mask=valid)
    tl.store(arena + at + 1, ((bits >> 24) & 255).to(tl.uint8), mask=valid)


@triton.jit
def _e4m3(values: tl.tensor) -> tl.tensor:
    """The nearest codes of f32 values within ±448, ties to even, int32."""
    bits = values.to(tl.int32, bitcast=True)
    sign = (bits >> 24) & 128
    size = bits & 0x7FFFFFFF
    # three bits of mantissa stay, and the exponent's bias is 120 less
    normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (120 << 3)
    small = _whole(tl.abs(values) * 512.0).to(tl.int32)
    return sign | tl.where(size < 0x3C800000, small, normal)


@triton.jit
def store_codes(
    arena: tl.tensor,
    start: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    valid: tl.tensor,
    CODEC: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Code rows and write them at the bytes `start` `[K]`; `encode_rows` is the definition.

    The bits of their scales and offsets, in the upper halves of int32 each, 0 for no offset.
    fp8 and int8: `low` f32 `[K, BLOCK]` holds whole rows, 0 beyond D. int4: `low` and `high` hold
    elements i and i + ⌈D/2⌉ of rows that are rotated already.
    """
    size = tl.arange(0, BLOCK)[None, :]
    magnitudes = low.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    if CODEC == INT4:
        HALF: tl.constexpr = (D + 1) // 2
        other = high.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        has_low, has_high = size < HALF, size + HALF < D
        largest = tl.max(tl.maximum(magnitudes, other), 1)
        lowest = tl.minimum(
            tl.min(tl.where(has_low, low, float("inf")), 1),
            tl.min(tl.where(has_high, high, float("inf")), 1),
        )
        highest = tl.maximum(
            tl.max(tl.where(has_low, low, float("-inf")), 1),
            tl.max(tl.where(has_high, high, float("-inf")), 1),
        )
        offset_bits = _down(lowest)
        offset = offset_bits.to(tl.float32, bitcast=True)
        span = highest - offset
        scale_bits = _up(tl.div_rn(span, tl.full(span.shape, 15.0, tl.float32)))
    else:
        offset_bits = tl.zeros(start.shape, tl.int32)
        largest = tl.max(magnitudes, 1)
        span = largest.to(tl.float32, bitcast=True)
        steps = 448.0 if CODEC == FP8 else 127.0
        scale_bits = _up(tl.div_rn(span, tl.full(span.shape, steps, tl.float32)))
    finite = largest < _NOT_FINITE
    # so that such a row decodes to NaN throughout
    scale_bits = tl.where(finite, scale_bits, 0x7FC00000)
    # rounded up, it keeps every code in its range; rows without one have codes of 0
    coded = finite & (scale_bits < _NOT_FINITE)
    scale = tl.where(coded, scale_bits.to(tl.float32, bitcast=True), 1.0)
    if CODEC == INT4:
        kept = tl.where(coded, 15, 0)[:, None]
        codes = _whole_bits(_over(low - offset[:, None], scale)) & kept
        upper = _whole_bits(_over(high - offset[:, None], scale)) & kept
        codes |= tl.where(has_high, upper, 0) << 4
        wanted = valid[:, None] & has_low
        tl.store(arena + start[:, None] + size, codes.to(tl.uint8), mask=wanted)
    else:
        shares = _over(low, scale)
        codes = _e4m3(tl.clamp(shares, -448.0, 448.0)) if CODEC == FP8 else _whole_bits(shares)
        codes &= tl.where(coded, 255, 0)[:, None]
        wanted = valid[:, None] & (size < D)
        tl.store(arena + start[:, None] + size, codes.to(tl.uint8), mask=wanted)
    return scale_bits, offset_bits


@triton.jit
def store_coded(
    rows: tl.tensor,
    start: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    valid: tl.tensor,
    CODEC: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """`store_codes`, and their scales behind them, as rows are shipped."""
    scale, offset = store_codes(rows, start, low, high, valid, CODEC, D, BLOCK)
    if CODEC == INT4:
        HALF: tl.constexpr = (D + 1) // 2
        _store_bfloat16(rows, start + HALF, scale, valid)
        _store_bfloat16(rows, start + HALF + 2, offset, valid)
    else:
        _store_bfloat16(rows, start + D, scale, valid)

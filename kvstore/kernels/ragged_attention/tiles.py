"""Device functions of the attention kernels: slices, tiles of rows, masked logits."""

from __future__ import annotations

import triton
import triton.language as tl

from kvstore.kernels.coded_rows import (
    INT4,
    MODEL,
    WORD_BYTES,
    column_unit,
    element_of,
    load_codes,
    load_scales,
)
from kvstore.kernels.ragged_attention.arguments import (
    AttentionForm,
    HeadMetadata,
    HeadRows,
    QueryRows,
)
from kvstore.kernels.tile_product import tile_product

# a logit that no query reaches; finite, so that the difference of two is defined
HIDDEN = tl.constexpr(-1e30)


@triton.jit
def slice_rows(ends: tl.tensor, count: int, SLICES: tl.constexpr, LEAST: tl.constexpr) -> tl.tensor:
    """Return the rows of a slice: at least a tile, so that few rows make few partial results."""
    return tl.maximum(tl.cdiv(tl.load(ends + count - 1), SLICES), LEAST)


@triton.jit
def first_head(ends: tl.tensor, count: int, row: tl.tensor) -> tl.tensor:
    """Return the head of a layer's `row`, which is the number of heads that end at or before it."""
    before = 0
    for first in range(0, count, 1024):
        line = first + tl.arange(0, 1024)
        end = tl.load(ends + line, mask=line < count, other=2147483647)
        before += tl.sum((end <= row).to(tl.int32), 0)
    return before


@triton.jit
def tile_at(
    table: tl.tensor,
    first: tl.tensor,
    left: tl.tensor,
    STEP: tl.constexpr,
    PAGE_ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tuple[tl.tuple, tl.tensor, tl.tensor]:
    """Return a tile from the slot `first` of a head on, of which `left` slots remain.

    The result is its pages, for `tile_rows`; its slots `[BLOCK_N]`; and which of these are valid.
    At most `STEP` are, no more than a page has, so that a tile reaches into at most two pages.
    """
    count = tl.minimum(left, STEP)
    number = tl.arange(0, BLOCK_N)
    place = first % PAGE_ROWS
    page = table + first // PAGE_ROWS
    # where there is none, the same
    following = tl.load(page + (place + count > PAGE_ROWS).to(tl.int32))
    pages = tl.load(page).to(tl.int64), following.to(tl.int64), place
    return pages, first + number, number < count


@triton.constexpr_function
def _alignment(page: int, row: int) -> int:
    """Return the largest power of two that divides both."""
    return (page | row) & -(page | row)


@triton.jit
def tile_rows(
    pages: tl.tuple,
    PAGE: tl.constexpr,
    ROW: tl.constexpr,
    PAGE_ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tensor:
    """Return where a tile's rows begin, `[BLOCK_N]`; a page takes `PAGE` and a row `ROW`."""
    page, following, place = pages
    number = tl.arange(0, BLOCK_N)
    left = PAGE_ROWS - place
    start = tl.where(number < left, page * PAGE + place * ROW, following * PAGE - left * ROW)
    # not seen through `where` by every Triton
    return tl.multiple_of(start, _alignment(PAGE, ROW)) + number * ROW


@triton.jit
def query_tile(
    q: QueryRows,
    first_query: tl.tensor,
    h: tl.tensor,
    query: tl.tensor,
    new_tokens: tl.tensor,
    CODEC: tl.constexpr,
    form: AttentionForm,
) -> tl.tensor:
    """Load a tile `[BLOCK_M, BLOCK_D]` of a KV head's `G · new_tokens` queries, which are adjacent.

    Columns stand as the codec of the keys, which the queries are multiplied with, unpacks them.
    """
    size = element_of(tl.arange(0, form.block_d), CODEC, form.size)
    place = q.data + (first_query + query % new_tokens).to(tl.int64)[:, None] * q.token
    place += (h * form.group + query // new_tokens)[:, None] * q.head + size[None, :] * q.size
    known = (query < form.group * new_tokens)[:, None]
    return tl.load(place, mask=known & (size[None, :] < form.size), other=0.0)


@triton.jit
def staged_keys(
    keys: tl.tensor, row: tl.tensor, valid: tl.tensor, D: tl.constexpr, BLOCK_D: tl.constexpr
) -> tl.tensor:
    """Load staged keys as columns, `[BLOCK_D, BLOCK_N]`."""
    size = tl.arange(0, BLOCK_D)
    wanted = valid[None, :] & (size[:, None] < D)
    return tl.load(keys + row[None, :] * D + size[:, None], mask=wanted, other=0.0)


@triton.jit
def staged_values(
    values: tl.tensor, row: tl.tensor, valid: tl.tensor, D: tl.constexpr, BLOCK_D: tl.constexpr
) -> tl.tensor:
    """Load staged values, `[BLOCK_N, BLOCK_D]`."""
    size = tl.arange(0, BLOCK_D)
    wanted = valid[:, None] & (size[None, :] < D)
    return tl.load(values + row[:, None] * D + size[None, :], mask=wanted, other=0.0)


@triton.jit
def held_logits(
    queries: tl.tensor,
    heads: HeadRows,
    pages: tl.tuple,
    valid: tl.tensor,
    factor: float,
    form: AttentionForm,
) -> tl.tensor:
    """Return queries times the keys of a tile's rows, times `factor`, f32; see `tile_at`.

    `[BLOCK_M, BLOCK_N]`. The queries' columns stand as the codec unpacks keys.
    """
    ROWS: tl.constexpr = valid.shape[0]
    PAGE_ROWS: tl.constexpr = form.pages.page_rows
    CODEC: tl.constexpr = form.pages.key_rows.codec
    PAGE: tl.constexpr = form.pages.key_rows.page
    D: tl.constexpr = form.size
    BLOCK_D: tl.constexpr = form.block_d
    start = tile_rows(pages, PAGE, form.pages.key_rows.codes, PAGE_ROWS, ROWS)
    codes = load_codes(
        heads.elements, heads.arena, start, valid, CODEC, D, BLOCK_D, queries.dtype, True
    )
    if CODEC == MODEL:
        logits = tile_product(queries, tl.trans(codes)) * factor
    else:
        words = form.pages.key_rows.scales + tile_rows(pages, PAGE, WORD_BYTES, PAGE_ROWS, ROWS)
        scale, offset = load_scales(heads.arena, words, valid, factor, CODEC, queries.dtype)
        if CODEC == INT4:
            exact = queries.to(tl.float32)
            unit = column_unit(tl.arange(0, BLOCK_D), CODEC, queries.dtype)
            moved = (exact * unit[None, :]).to(queries.dtype)
            logits = tile_product(moved, tl.trans(codes)) * scale[None, :]
            logits += (tl.sum(exact, 1) * factor)[:, None] * offset[None, :]
        else:
            logits = tile_product(queries, tl.trans(codes)) * scale[None, :]
    return logits


@triton.constexpr_function
def _value_type(model: tl.dtype) -> tl.dtype:
    """Return the type of decoded values: float16 would lose small weights times small scales."""
    return tl.float32 if model == tl.float32 else tl.bfloat16


@triton.jit
def mixed_values(
    weights: tl.tensor,
    heads: HeadRows,
    pages: tl.tuple,
    valid: tl.tensor,
    form: AttentionForm,
) -> tuple[tl.tensor, tl.tensor]:
    """Return weights `[BLOCK_M, BLOCK_N]` times a tile's values, f32 `[BLOCK_M, BLOCK_D]`.

    Columns stand as the codec unpacks them (`element_of`) and in its units (`column_unit`). The
    second result is what each weight adds to all elements of a row, `[BLOCK_M, BLOCK_N]`. Where
    the form is split, see `mix_split`.
    """
    TYPE: tl.constexpr = _value_type(heads.elements.dtype.element_ty)  # type: ignore[attr-defined]
    ROWS: tl.constexpr = valid.shape[0]
    PAGE_ROWS: tl.constexpr = form.pages.page_rows
    CODEC: tl.constexpr = form.pages.value_rows.codec
    PAGE: tl.constexpr = form.pages.value_rows.page
    D: tl.constexpr = form.size
    BLOCK_D: tl.constexpr = form.block_d
    start = form.pages.value_rows.first
    start = start + tile_rows(pages, PAGE, form.pages.value_rows.codes, PAGE_ROWS, ROWS)
    codes = load_codes(heads.elements, heads.arena, start, valid, CODEC, D, BLOCK_D, TYPE, False)
    added = tl.zeros(weights.shape, tl.float32)
    if CODEC != MODEL:
        words = form.pages.value_rows.scales + tile_rows(pages, PAGE, WORD_BYTES, PAGE_ROWS, ROWS)
        scale, offset = load_scales(heads.arena, words, valid, 1.0, CODEC, TYPE)
        if CODEC == INT4:
            added = weights * offset[None, :]
        weights *= scale[None, :]
    mixed = mix_split(weights, codes) if form.split else mix(weights, codes)
    return mixed, added


@triton.jit
def complete_values(result: tl.tensor, elements: tl.tensor, form: AttentionForm) -> tl.tensor:
    """Return sums of `mixed_values` in units of values; where split, in both halves of the tile."""
    ROWS: tl.constexpr = result.shape[0]
    BLOCK_D: tl.constexpr = result.shape[1]
    if form.split:
        halves = tl.reshape(result, (2, ROWS // 2, BLOCK_D))
        both = tl.sum(halves, 0)[None, :, :]
        result = tl.reshape(tl.broadcast_to(both, halves.shape), (ROWS, BLOCK_D))
    TYPE: tl.constexpr = _value_type(elements.dtype.element_ty)
    return result * column_unit(tl.arange(0, BLOCK_D), form.pages.value_rows.codec, TYPE)[None, :]


@triton.jit
def apply_metadata(
    logits: tl.tensor,
    valid: tl.tensor,
    slot: tl.tensor,
    own: tl.tensor,
    has_metadata: tl.tensor,
    has_weights: tl.tensor,
    table: tl.tensor,
    metadata: HeadMetadata,
    window: int,
    form: AttentionForm,
) -> tl.tensor:
    """Apply log-weights and the sliding window to logits; `own` are the queries' positions.

    Where a head has no metadata, slot n is position n. `table`: the head's metadata pages.
    """
    if form.windowed or form.weighted:
        there = valid & (slot < tl.where(has_metadata, 2147483647, 0))
        page = tl.load(table + slot // form.metadata_page_rows, mask=there, other=0).to(tl.int64)
        entry = page * form.metadata_page_rows + slot % form.metadata_page_rows
        if form.weighted:
            have = there & (slot < tl.where(has_weights, 2147483647, 0))
            weight = tl.load(metadata.log_weights + entry, mask=have, other=0.0)
            # base 2, like the logits
            logits += weight[None, :] * 1.4426950408889634
        if form.windowed:
            position = tl.load(metadata.positions + entry, mask=there, other=0)
            position = tl.where(has_metadata, position, slot)
            logits = tl.where(own[:, None] - position[None, :] < window, logits, HIDDEN)
    return tl.where(valid[None, :], logits, HIDDEN)


@triton.jit
def staged_logits(
    logits: tl.tensor, token: tl.tensor, other: tl.tensor, block: tl.tensor, window: int
) -> tl.tensor:
    """Mask logits of the chunk's rows `other`, which they and later tokens in the window see."""
    distance = token[:, None] - other[None, :]
    seen = (distance >= 0) & (other[None, :] < block)
    if window > 0:
        seen = seen & (distance < window)
    return tl.where(seen, logits, HIDDEN)


@triton.jit
def mix(weights: tl.tensor, values: tl.tensor) -> tl.tensor:
    """Return weights times values. The weights go as sums of two 16-bit numbers, unrounded."""
    high = weights.to(values.dtype)
    mixed = tile_product(high, values)
    if values.dtype != tl.float32:
        low = (weights - high.to(tl.float32)).to(values.dtype)
        mixed += tile_product(low, values)
    return mixed


@triton.jit
def mix_split(weights: tl.tensor, values: tl.tensor) -> tl.tensor:
    """Return `mix` of a tile whose lower half repeats the weights of its upper half.

    One product takes both 16-bit parts of the weights. The halves of the result are to be added.
    """
    high = weights.to(values.dtype)
    first = tl.arange(0, weights.shape[0]) < weights.shape[0] // 2
    low = (weights - high.to(tl.float32)).to(values.dtype)
    return tile_product(tl.where(first[:, None], high, low), values)

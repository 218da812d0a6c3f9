"""What the ragged attention kernels share: the cut of the line, tiles of rows, masked logits."""

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
from kvstore.kernels.tile_product import tile_product

# logits no query reaches; finite, so that differences of two are defined
HIDDEN = tl.constexpr(-1e30)
# layers share their compiled form, and so do batches of any size
VARYING = [
    "layer",
    "layers",
    "heads",
    "count",
    "piece_queries",
    "cell_count",
    "table_pages",
    "metadata_pages",
    "window",
]


@triton.jit
def chunk_rows(ends: tl.tensor, count: int, CHUNKS: tl.constexpr, LEAST: tl.constexpr) -> tl.tensor:
    """How many rows of the line a chunk has; at least a tile, so that few rows make few pieces."""
    return tl.maximum(tl.cdiv(tl.load(ends + count - 1), CHUNKS), LEAST)


@triton.jit
def first_head(ends: tl.tensor, count: int, row: tl.tensor) -> tl.tensor:
    """The head that `row` of the line belongs to: as many end at or before it."""
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
    """A tile that begins with the slot `first` of a head, where `left` are left.

    The pages it lies in, for `tile_rows`; its slots `[BLOCK_N]`; and which are its own: `STEP` at
    most, no more than a page has, so that it reaches into two pages and no third one.
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
    """What both are multiples of, a power of two."""
    return (page | row) & -(page | row)


@triton.jit
def tile_rows(
    pages: tl.tuple,
    PAGE: tl.constexpr,
    ROW: tl.constexpr,
    PAGE_ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tensor:
    """Where a tile's rows begin, `[BLOCK_N]`, in pages that take `PAGE` and whose rows `ROW`."""
    page, following, place = pages
    number = tl.arange(0, BLOCK_N)
    left = PAGE_ROWS - place
    start = tl.where(number < left, page * PAGE + place * ROW, following * PAGE - left * ROW)
    # not seen through `where` by every Triton
    return tl.multiple_of(start, _alignment(PAGE, ROW)) + number * ROW


@triton.jit
def query_tile(
    q: tl.tensor,
    q_token: int,
    q_head: int,
    q_size: int,
    first_query: tl.tensor,
    h: tl.tensor,
    query: tl.tensor,
    fed: tl.tensor,
    GROUP: tl.constexpr,
    CODEC: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> tl.tensor:
    """A tile of a KV head's `G · fed` queries, `[BLOCK_M, BLOCK_D]`; those of a head adjacent.

    Columns are as the codec of the keys they are multiplied with unpacks it.
    """
    size = element_of(tl.arange(0, BLOCK_D), CODEC, D)
    place = q + (first_query + query % fed).to(tl.int64)[:, None] * q_token
    place += (h * GROUP + query // fed)[:, None] * q_head + size[None, :] * q_size
    return tl.load(place, mask=(query < GROUP * fed)[:, None] & (size[None, :] < D), other=0.0)


@triton.jit
def fed_keys(
    keys: tl.tensor, row: tl.tensor, valid: tl.tensor, D: tl.constexpr, BLOCK_D: tl.constexpr
) -> tl.tensor:
    """Fed rows as columns, `[BLOCK_D, BLOCK_N]`."""
    size = tl.arange(0, BLOCK_D)
    wanted = valid[None, :] & (size[:, None] < D)
    return tl.load(keys + row[None, :] * D + size[:, None], mask=wanted, other=0.0)


@triton.jit
def fed_values(
    values: tl.tensor, row: tl.tensor, valid: tl.tensor, D: tl.constexpr, BLOCK_D: tl.constexpr
) -> tl.tensor:
    """Fed rows `[BLOCK_N, BLOCK_D]`."""
    size = tl.arange(0, BLOCK_D)
    wanted = valid[:, None] & (size[None, :] < D)
    return tl.load(values + row[:, None] * D + size[None, :], mask=wanted, other=0.0)


@triton.jit
def held_logits(
    queries: tl.tensor,
    elements: tl.tensor,
    arena: tl.tensor,
    pages: tl.tuple,
    valid: tl.tensor,
    factor: float,
    KEY_CODEC: tl.constexpr,
    KEY_PAGE: tl.constexpr,
    KEY_CODES: tl.constexpr,
    KEY_SCALES: tl.constexpr,
    PAGE_ROWS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> tl.tensor:
    """Queries times the keys of a tile's rows, times `factor`, f32; see `tile_at`.

    `[BLOCK_M, BLOCK_N]`. The queries' columns are as the codec unpacks keys.
    """
    ROWS: tl.constexpr = valid.shape[0]
    start = tile_rows(pages, KEY_PAGE, KEY_CODES, PAGE_ROWS, ROWS)
    codes = load_codes(elements, arena, start, valid, KEY_CODEC, D, BLOCK_D, queries.dtype, True)
    if KEY_CODEC == MODEL:
        logits = tile_product(queries, tl.trans(codes)) * factor
    else:
        words = KEY_SCALES + tile_rows(pages, KEY_PAGE, WORD_BYTES, PAGE_ROWS, ROWS)
        scale, offset = load_scales(arena, words, valid, factor, KEY_CODEC, queries.dtype)
        if KEY_CODEC == INT4:
            exact = queries.to(tl.float32)
            unit = column_unit(tl.arange(0, BLOCK_D), KEY_CODEC, queries.dtype)
            moved = (exact * unit[None, :]).to(queries.dtype)
            logits = tile_product(moved, tl.trans(codes)) * scale[None, :]
            logits += (tl.sum(exact, 1) * factor)[:, None] * offset[None, :]
        else:
            logits = tile_product(queries, tl.trans(codes)) * scale[None, :]
    return logits


@triton.constexpr_function
def _value_type(model: tl.dtype) -> tl.dtype:
    """What values become: float16 would lose small weights times small scales."""
    return tl.float32 if model == tl.float32 else tl.bfloat16


@triton.jit
def mixed_values(
    weights: tl.tensor,
    elements: tl.tensor,
    arena: tl.tensor,
    pages: tl.tuple,
    valid: tl.tensor,
    VALUE_CODEC: tl.constexpr,
    VALUE_PAGE: tl.constexpr,
    VALUE_CODES: tl.constexpr,
    VALUE_SCALES: tl.constexpr,
    VALUE_FIRST: tl.constexpr,
    PAGE_ROWS: tl.constexpr,
    SPLIT: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Weights `[BLOCK_M, BLOCK_N]` times the rows' values, f32 `[BLOCK_M, BLOCK_D]`.

    Those of a tile, see `tile_at`. Columns as the codec unpacks them, `element_of` and in its
    units, `column_unit`; and what each weight adds to all of a row's elements,
    `[BLOCK_M, BLOCK_N]`. `SPLIT`: see `mix_split`.
    """
    TYPE: tl.constexpr = _value_type(elements.dtype.element_ty)
    ROWS: tl.constexpr = valid.shape[0]
    start = VALUE_FIRST + tile_rows(pages, VALUE_PAGE, VALUE_CODES, PAGE_ROWS, ROWS)
    codes = load_codes(elements, arena, start, valid, VALUE_CODEC, D, BLOCK_D, TYPE, False)
    added = tl.zeros(weights.shape, tl.float32)
    if VALUE_CODEC != MODEL:
        words = VALUE_SCALES + tile_rows(pages, VALUE_PAGE, WORD_BYTES, PAGE_ROWS, ROWS)
        scale, offset = load_scales(arena, words, valid, 1.0, VALUE_CODEC, TYPE)
        if VALUE_CODEC == INT4:
            added = weights * offset[None, :]
        weights *= scale[None, :]
    mixed = mix_split(weights, codes) if SPLIT else mix(weights, codes)
    return mixed, added


@triton.jit
def whole_values(
    result: tl.tensor,
    elements: tl.tensor,
    VALUE_CODEC: tl.constexpr,
    SPLIT: tl.constexpr,
) -> tl.tensor:
    """Sums of `mixed_values` in the units of values; where split, in both halves of the tile."""
    ROWS: tl.constexpr = result.shape[0]
    BLOCK_D: tl.constexpr = result.shape[1]
    if SPLIT:
        halves = tl.reshape(result, (2, ROWS // 2, BLOCK_D))
        both = tl.sum(halves, 0)[None, :, :]
        result = tl.reshape(tl.broadcast_to(both, halves.shape), (ROWS, BLOCK_D))
    TYPE: tl.constexpr = _value_type(elements.dtype.element_ty)
    return result * column_unit(tl.arange(0, BLOCK_D), VALUE_CODEC, TYPE)[None, :]


@triton.jit
def marked_logits(
    logits: tl.tensor,
    valid: tl.tensor,
    slot: tl.tensor,
    own: tl.tensor,
    marked: tl.tensor,
    weighted: tl.tensor,
    mark_table: tl.tensor,
    positions: tl.tensor,
    log_weights: tl.tensor,
    window: int,
    WINDOWED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    MARK_ROWS: tl.constexpr,
) -> tl.tensor:
    """Logits of held rows with what their marks say; `own` are the queries' positions.

    Where a head has no marks, slot n is position n.
    """
    if WINDOWED or WEIGHTED:
        there = valid & (slot < tl.where(marked, 2147483647, 0))
        page = tl.load(mark_table + slot // MARK_ROWS, mask=there, other=0).to(tl.int64)
        mark = page * MARK_ROWS + slot % MARK_ROWS
        if WEIGHTED:
            have = there & (slot < tl.where(weighted, 2147483647, 0))
            weight = tl.load(log_weights + mark, mask=have, other=0.0)
            # base 2, like the logits
            logits += weight[None, :] * 1.4426950408889634
        if WINDOWED:
            position = tl.load(positions + mark, mask=there, other=0)
            position = tl.where(marked, position, slot)
            logits = tl.where(own[:, None] - position[None, :] < window, logits, HIDDEN)
    return tl.where(valid[None, :], logits, HIDDEN)


@triton.jit
def fed_logits(
    logits: tl.tensor, token: tl.tensor, other: tl.tensor, block: tl.tensor, window: int
) -> tl.tensor:
    """Logits of the block's rows `other`, seen by themselves and later tokens in the window."""
    distance = token[:, None] - other[None, :]
    seen = (distance >= 0) & (other[None, :] < block)
    if window > 0:
        seen = seen & (distance < window)
    return tl.where(seen, logits, HIDDEN)


@triton.jit
def mix(weights: tl.tensor, values: tl.tensor) -> tl.tensor:
    """Weights times values without rounding the weights to 16 bits: as the sum of two such."""
    high = weights.to(values.dtype)
    mixed = tile_product(high, values)
    if values.dtype != tl.float32:
        low = (weights - high.to(tl.float32)).to(values.dtype)
        mixed += tile_product(low, values)
    return mixed


@triton.jit
def mix_split(weights: tl.tensor, values: tl.tensor) -> tl.tensor:
    """The same of a tile whose lower half has the weights of its upper half again.

    The halves of the result are to be added: one product has both parts of the weights.
    """
    high = weights.to(values.dtype)
    first = tl.arange(0, weights.shape[0]) < weights.shape[0] // 2
    low = (weights - high.to(tl.float32)).to(values.dtype)
    return tile_product(tl.where(first[:, None], high, low), values)

"""What the ragged attention kernels share: the cut of the line, tiles of rows, masked logits."""

from __future__ import annotations

import triton
import triton.language as tl

from kvstore.kernels.flat_rows import flat_rows
from kvstore.kernels.tile_product import tile_product

# logits no query reaches; finite, so that differences of two are defined
HIDDEN = tl.constexpr(-1e30)


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
def query_tile(
    q: tl.tensor,
    q_sequence: int,
    q_head: int,
    q_token: int,
    q_size: int,
    b: tl.tensor,
    h: tl.tensor,
    query: tl.tensor,
    fed: int,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> tl.tensor:
    """A tile of a KV head's `G · m` queries, `[BLOCK_M, BLOCK_D]`; those of a head are adjacent."""
    size = tl.arange(0, BLOCK_D)
    place = q + b.to(tl.int64) * q_sequence + (h * GROUP + query // fed)[:, None] * q_head
    place += (query % fed)[:, None] * q_token + size[None, :] * q_size
    return tl.load(place, mask=(query < GROUP * fed)[:, None] & (size[None, :] < D), other=0.0)


@triton.jit
def key_tile(
    keys: tl.tensor, row: tl.tensor, valid: tl.tensor, D: tl.constexpr, BLOCK_D: tl.constexpr
) -> tl.tensor:
    """Rows as columns, `[BLOCK_D, BLOCK_N]`."""
    size = tl.arange(0, BLOCK_D)
    wanted = valid[None, :] & (size[:, None] < D)
    return tl.load(keys + row[None, :] * D + size[:, None], mask=wanted, other=0.0)


@triton.jit
def value_tile(
    values: tl.tensor, row: tl.tensor, valid: tl.tensor, D: tl.constexpr, BLOCK_D: tl.constexpr
) -> tl.tensor:
    """Rows `[BLOCK_N, BLOCK_D]`."""
    size = tl.arange(0, BLOCK_D)
    wanted = valid[:, None] & (size[None, :] < D)
    return tl.load(values + row[:, None] * D + size[None, :], mask=wanted, other=0.0)


@triton.jit
def marked_logits(
    logits: tl.tensor,
    valid: tl.tensor,
    slot: tl.tensor,
    own: tl.tensor,
    mark_table: tl.tensor,
    positions: tl.tensor,
    log_weights: tl.tensor,
    window: int,
    WINDOWED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    PAGE_ROWS: tl.constexpr,
) -> tl.tensor:
    """Logits of held rows with what their marks say; `own` are the queries' positions."""
    if WINDOWED or WEIGHTED:
        marked = valid & (slot < tl.where(tl.load(mark_table) >= 0, 2147483647, 0))
        mark = flat_rows(mark_table, slot, marked, PAGE_ROWS)
        if WEIGHTED:
            # base 2, like the logits
            weight = tl.load(log_weights + mark, mask=marked, other=0.0) * 1.4426950408889634
            logits += weight[None, :]
        if WINDOWED:
            position = tl.load(positions + mark, mask=marked, other=0)
            seen = own[:, None] - position[None, :] < window
            logits = tl.where(seen, logits, HIDDEN)
    return tl.where(valid[None, :], logits, HIDDEN)


@triton.jit
def fed_logits(
    logits: tl.tensor, token: tl.tensor, other: tl.tensor, fed: int, window: int
) -> tl.tensor:
    """Logits of fed rows `other`, each seen by itself and later tokens within the window."""
    distance = token[:, None] - other[None, :]
    seen = (distance >= 0) & (other[None, :] < fed)
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

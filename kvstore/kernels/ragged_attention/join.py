"""Joins a head's pieces, and adds the rows that the step itself feeds."""

from __future__ import annotations

import triton
import triton.language as tl

from kvstore.kernels.coded_rows import MODEL
from kvstore.kernels.ragged_attention.tiles import (
    HIDDEN,
    VARYING,
    chunk_rows,
    fed_keys,
    fed_logits,
    fed_values,
    mix,
    query_tile,
)
from kvstore.kernels.tile_product import tile_product

# pieces of a head that are read side by side
JOINED = tl.constexpr(4)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=["ends"])
def join_pieces(
    out: tl.tensor,
    out_token: int,
    out_head: int,
    out_size: int,
    q: tl.tensor,
    q_token: int,
    q_head: int,
    q_size: int,
    new_keys: tl.tensor,
    new_values: tl.tensor,
    cells: tl.tensor,
    before: tl.tensor,
    counts: tl.tensor,
    first_queries: tl.tensor,
    cell_count: int,
    elements: tl.tensor,
    arena: tl.tensor,
    pages: tl.tensor,
    table_pages: int,
    marks: tl.tensor,
    metadata_pages: int,
    marked: tl.tensor,
    weighted: tl.tensor,
    positions: tl.tensor,
    log_weights: tl.tensor,
    lengths: tl.tensor,
    rows: tl.tensor,
    ends: tl.tensor,
    count: int,
    layer: int,
    layers: int,
    heads: int,
    piece_queries: int,
    scale: float,
    window: int,
    maxima: tl.tensor,
    sums: tl.tensor,
    mixed: tl.tensor,
    totals: tl.tensor,
    saved_logits: tl.tensor,
    scored: tl.tensor,
    KEY_CODEC: tl.constexpr,
    KEY_PAGE: tl.constexpr,
    KEY_CODES: tl.constexpr,
    KEY_SCALES: tl.constexpr,
    VALUE_CODEC: tl.constexpr,
    VALUE_PAGE: tl.constexpr,
    VALUE_CODES: tl.constexpr,
    VALUE_SCALES: tl.constexpr,
    VALUE_FIRST: tl.constexpr,
    PAGE_ROWS: tl.constexpr,
    CHUNKS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    MARK_ROWS: tl.constexpr,
    WINDOWED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SCORED: tl.constexpr,
    SINGLE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Program (sequence and head, query tile): join the pieces, then the fed rows."""
    head = tl.program_id(0)
    b, h = head // heads, head % heads
    fed = tl.load(counts + b)
    if (h < KV_HEADS) & (tl.program_id(1) * BLOCK_M < GROUP * fed):
        query = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
        known = query < GROUP * fed
        size = tl.arange(0, BLOCK_D)
        wanted = known[:, None] & (size[None, :] < D)
        share = chunk_rows(ends, count, CHUNKS, BLOCK_N)
        end = tl.load(ends + head)
        held = tl.load(rows + (tl.cast(b, tl.int64) * layers + layer) * heads + h)
        first = (end - held) // share
        pieces = tl.where(held > 0, (end - 1) // share - first + 1, 0)
        top = tl.full([BLOCK_M], HIDDEN, tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        result = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for number in range(0, pieces, JOINED):
            for further in tl.static_range(JOINED):
                # beyond the last piece no query has anything
                there = query < tl.where(pieces > number + further, GROUP * fed, 0)
                piece = (first + head + number + further).to(tl.int64) * piece_queries + query
                their_top = tl.load(maxima + piece, mask=there, other=HIDDEN)
                their_total = tl.load(sums + piece, mask=there, other=0.0)
                theirs = tl.load(
                    mixed + piece[:, None] * D + size[None, :],
                    mask=there[:, None] & (size[None, :] < D),
                    other=0.0,
                )
                above = tl.maximum(top, their_top)
                fade, rise = tl.exp2(top - above), tl.exp2(their_top - above)
                total = total * fade + their_total * rise
                result = result * fade[:, None] + theirs * rise[:, None]
                top = above
        first_query = tl.load(first_queries + b)
        queries = query_tile(
            q, q_token, q_head, q_size, first_query, h, query, fed, GROUP, MODEL, D, BLOCK_D
        )
        token = query % fed + tl.load(before + b)
        block = fed + tl.load(before + b)
        cell = (layer * heads + h).to(tl.int64) * cell_count + tl.load(cells + b)
        for start in range(0, block, BLOCK_N):
            other = start + tl.arange(0, BLOCK_N)
            there = other < block
            keys = fed_keys(new_keys, cell + other, there, D, BLOCK_D)
            logits = fed_logits(tile_product(queries, keys) * scale, token, other, block, window)
            above = tl.maximum(top, tl.max(logits, 1))
            weights = tl.exp2(logits - above[:, None])
            fade = tl.exp2(top - above)
            total = total * fade + tl.sum(weights, 1)
            result *= fade[:, None]
            result += mix(weights, fed_values(new_values, cell + other, there, D, BLOCK_D))
            top = above
        target = out + (first_query + query % fed).to(tl.int64)[:, None] * out_token
        target += (h * GROUP + query // fed)[:, None] * out_head + size[None, :] * out_size
        tl.store(target, (result / total[:, None]).to(out.dtype.element_ty), mask=wanted)
        if SCORED:
            tl.store(totals + head * piece_queries + query, top + tl.log2(total), mask=known)

"""Attention of one chunk of the line: a piece for each head that it touches."""

from __future__ import annotations

import triton
import triton.language as tl

from kvstore.kernels.coded_rows import element_of
from kvstore.kernels.ragged_attention.tiles import (
    HIDDEN,
    VARYING,
    chunk_rows,
    first_head,
    held_logits,
    marked_logits,
    mixed_values,
    query_tile,
    tile_at,
    whole_values,
)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=["ends"])
def attend_chunk(
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
    SPLIT: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Program (chunk, query tile). Piece `chunk + head`: each later one is of a later of both.

    `SPLIT`: half a tile is enough for all queries, and its other half has them again.
    """
    # no more than a page
    STEP: tl.constexpr = min(BLOCK_N, PAGE_ROWS)
    chunk = tl.program_id(0)
    in_tile = tl.arange(0, BLOCK_M)
    query = tl.program_id(1) * BLOCK_M + in_tile
    if SPLIT:
        query = in_tile % (BLOCK_M // 2)
    size = element_of(tl.arange(0, BLOCK_D), VALUE_CODEC, D)
    share = chunk_rows(ends, count, CHUNKS, BLOCK_N)
    row = chunk * share
    last = tl.minimum(row + share, tl.load(ends + count - 1))
    head = 0
    if row < last:
        head = first_head(ends, count, row)
    while row < last:
        end = tl.load(ends + head)
        if end > row:
            stop = tl.minimum(last, end)
            b, h = head // heads, head % heads
            fed = tl.load(counts + b)
            # longer blocks of others have more tiles of queries
            if tl.program_id(1) * BLOCK_M < GROUP * fed:
                place = (tl.cast(b, tl.int64) * layers + layer) * heads + h
                begin = end - tl.load(rows + place)
                known = query < GROUP * fed
                if SPLIT:
                    known = known & (in_tile < BLOCK_M // 2)
                first_query = tl.load(first_queries + b)
                queries = query_tile(
                    q,
                    q_token,
                    q_head,
                    q_size,
                    first_query,
                    h,
                    query,
                    fed,
                    GROUP,
                    KEY_CODEC,
                    D,
                    BLOCK_D,
                )
                own = query % fed + tl.load(before + b)
                if WINDOWED:
                    own = own + tl.load(lengths + b).to(tl.int32)
                is_marked, is_weighted = False, False
                if WINDOWED or WEIGHTED:
                    is_marked = tl.load(marked + place).to(tl.int32) != 0
                    is_weighted = tl.load(weighted + place).to(tl.int32) != 0
                wants_scores = False
                if SCORED:
                    wants_scores = tl.load(scored + place) != 0
                top = tl.full([BLOCK_M], HIDDEN, tl.float32)
                # to be added up at the end, as what values have in common is
                total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
                common = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
                result = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
                table = pages + place * table_pages
                for at in range(row, stop, STEP):
                    tile, slot, valid = tile_at(
                        table, at - begin, stop - at, STEP, PAGE_ROWS, BLOCK_N
                    )
                    logits = held_logits(
                        queries,
                        elements,
                        arena,
                        tile,
                        valid,
                        scale,
                        KEY_CODEC,
                        KEY_PAGE,
                        KEY_CODES,
                        KEY_SCALES,
                        PAGE_ROWS,
                        D,
                        BLOCK_D,
                    )
                    logits = marked_logits(
                        logits,
                        valid,
                        slot,
                        own,
                        is_marked,
                        is_weighted,
                        marks + place * metadata_pages,
                        positions,
                        log_weights,
                        window,
                        WINDOWED,
                        WEIGHTED,
                        MARK_ROWS,
                    )
                    if SCORED and SINGLE:
                        if wants_scores:
                            saved = (begin + slot)[None, :].to(tl.int64) * GROUP + query[:, None]
                            tl.store(
                                saved_logits + saved, logits, mask=known[:, None] & valid[None, :]
                            )
                    above = tl.maximum(top, tl.max(logits, 1))
                    weights = tl.exp2(logits - above[:, None])
                    fade = tl.exp2(top - above)
                    total = total * fade[:, None] + weights
                    further, added = mixed_values(
                        weights,
                        elements,
                        arena,
                        tile,
                        valid,
                        VALUE_CODEC,
                        VALUE_PAGE,
                        VALUE_CODES,
                        VALUE_SCALES,
                        VALUE_FIRST,
                        PAGE_ROWS,
                        SPLIT,
                        D,
                        BLOCK_D,
                    )
                    result = result * fade[:, None] + further
                    common = common * fade[:, None] + added
                    top = above
                result = whole_values(result, elements, VALUE_CODEC, SPLIT)
                result += tl.sum(common, 1)[:, None]
                piece = (chunk + head).to(tl.int64) * piece_queries + query
                tl.store(maxima + piece, top, mask=known)
                tl.store(sums + piece, tl.sum(total, 1), mask=known)
                wanted = known[:, None] & (size[None, :] < D)
                tl.store(mixed + piece[:, None] * D + size[None, :], result, mask=wanted)
            row = stop
        head += 1

"""Hands every row the probability that it received."""

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
    first_head,
    held_logits,
    marked_logits,
    query_tile,
    tile_at,
)
from kvstore.kernels.tile_product import tile_product


@triton.jit
def hand_back_saved(
    received: tl.tensor,
    saved_logits: tl.tensor,
    totals: tl.tensor,
    row: tl.tensor,
    stop: tl.tensor,
    earlier_tokens: tl.tensor,
    GROUP: tl.constexpr,
    BLOCK_R: tl.constexpr,
) -> None:
    """Rows `[row, stop)` of the line, where `received` begins, from a single token's logits."""
    BLOCK_G: tl.constexpr = triton.next_power_of_2(GROUP)
    query = tl.arange(0, BLOCK_G)
    total = tl.load(totals + query, mask=query < GROUP, other=0.0)
    for at in range(row, stop, BLOCK_R):
        line = at + tl.arange(0, BLOCK_R)
        valid = line < stop
        logits = tl.load(
            saved_logits + line[:, None].to(tl.int64) * GROUP + query[None, :],
            mask=valid[:, None] & (query[None, :] < GROUP),
            other=HIDDEN,
        )
        shares = tl.sum(tl.exp2(logits - total[None, :]), 1) / GROUP
        added = line < tl.where(earlier_tokens > 0, stop, 0)
        shares += tl.load(received + line, mask=added, other=0.0)
        tl.store(received + line, shares, mask=valid)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=["ends"])
def hand_back(
    received: tl.tensor,
    starts: tl.tensor,
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
    """Program (chunk, then sequence and head): probabilities of its held rows, of the fed ones.

    Logits of a single token were saved; those of a block are computed again, which is cheaper
    than G · m of them a row. What a block receives is added to what its earlier pieces gave.
    """
    # no more than a page
    STEP: tl.constexpr = min(BLOCK_N, PAGE_ROWS)
    program = tl.program_id(0)
    if program < CHUNKS:
        share = chunk_rows(ends, count, CHUNKS, BLOCK_N)
        row = program * share
        last = tl.minimum(row + share, tl.load(ends + count - 1))
        head = 0
        if row < last:
            head = first_head(ends, count, row)
        while row < last:
            end = tl.load(ends + head)
            if end > row:
                b, h = head // heads, head % heads
                stop = tl.minimum(last, end)
                place = (tl.cast(b, tl.int64) * layers + layer) * heads + h
                if tl.load(scored + place) != 0:
                    begin = end - tl.load(rows + place)
                    entry = tl.load(starts + place).to(tl.int64)
                    fed = tl.load(counts + b)
                    first_query = tl.load(first_queries + b)
                    earlier_tokens = tl.load(before + b)
                    own = earlier_tokens
                    if WINDOWED:
                        own = own + tl.load(lengths + b).to(tl.int32)
                    is_marked, is_weighted = False, False
                    if WINDOWED or WEIGHTED:
                        is_marked = tl.load(marked + place).to(tl.int32) != 0
                        is_weighted = tl.load(weighted + place).to(tl.int32) != 0
                    if SINGLE:
                        hand_back_saved(
                            received + entry - begin,
                            saved_logits,
                            totals + head * piece_queries,
                            row,
                            stop,
                            earlier_tokens,
                            GROUP,
                            4 * BLOCK_N,
                        )
                    else:
                        table = pages + place * table_pages
                        for at in range(row, stop, STEP):
                            tile, slot, valid = tile_at(
                                table, at - begin, stop - at, STEP, PAGE_ROWS, BLOCK_N
                            )
                            shares = tl.zeros([BLOCK_N], tl.float32)
                            for first in range(0, GROUP * fed, BLOCK_M):
                                query = first + tl.arange(0, BLOCK_M)
                                known = query < GROUP * fed
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
                                    own + query % fed,
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
                                total = tl.load(
                                    totals + head * piece_queries + query, mask=known, other=0.0
                                )
                                logits = tl.where(known[:, None], logits, HIDDEN)
                                shares += tl.sum(tl.exp2(logits - total[:, None]), 0) / GROUP
                            added = valid & (slot < tl.where(earlier_tokens > 0, 2147483647, 0))
                            shares += tl.load(received + entry + slot, mask=added, other=0.0)
                            tl.store(received + entry + slot, shares, mask=valid)
                row = stop
            head += 1
    else:
        head = program - CHUNKS
        b, h = head // heads, head % heads
        place = (tl.cast(b, tl.int64) * layers + layer) * heads + h
        wanted = False
        if h < KV_HEADS:
            wanted = tl.load(scored + place) != 0
        if wanted:
            entry = tl.load(starts + place).to(tl.int64) + tl.load(rows + place)
            cell = (layer * heads + h).to(tl.int64) * cell_count + tl.load(cells + b)
            fed = tl.load(counts + b)
            first_query = tl.load(first_queries + b)
            earlier_tokens = tl.load(before + b)
            block = earlier_tokens + fed
            for start in range(0, block, BLOCK_N):
                other = start + tl.arange(0, BLOCK_N)
                keys = fed_keys(new_keys, cell + other, other < block, D, BLOCK_D)
                shares = tl.zeros([BLOCK_N], tl.float32)
                for first in range(0, GROUP * fed, BLOCK_M):
                    query = first + tl.arange(0, BLOCK_M)
                    known = query < GROUP * fed
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
                        MODEL,
                        D,
                        BLOCK_D,
                    )
                    logits = fed_logits(
                        tile_product(queries, keys) * scale,
                        query % fed + earlier_tokens,
                        other,
                        block,
                        window,
                    )
                    total = tl.load(totals + head * piece_queries + query, mask=known, other=0.0)
                    logits = tl.where(known[:, None], logits, HIDDEN)
                    shares += tl.sum(tl.exp2(logits - total[:, None]), 0) / GROUP
                shares += tl.load(received + entry + other, mask=other < earlier_tokens, other=0.0)
                tl.store(received + entry + other, shares, mask=other < block)

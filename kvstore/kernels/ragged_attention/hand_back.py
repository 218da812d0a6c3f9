"""Hands every row the probability that it received."""

from __future__ import annotations

import triton
import triton.language as tl

from kvstore.kernels.flat_rows import flat_rows
from kvstore.kernels.ragged_attention.tiles import (
    HIDDEN,
    chunk_rows,
    fed_logits,
    first_head,
    key_tile,
    marked_logits,
    query_tile,
)
from kvstore.kernels.tile_product import tile_product


# layers share their compiled form
@triton.jit(do_not_specialize=["layer"])
def hand_back(
    received: tl.tensor,
    starts: tl.tensor,
    q: tl.tensor,
    q_sequence: int,
    q_head: int,
    q_token: int,
    q_size: int,
    new_keys: tl.tensor,
    new_values: tl.tensor,
    cells: tl.tensor,
    cell_count: int,
    keys: tl.tensor,
    values: tl.tensor,
    pages: tl.tensor,
    marks: tl.tensor,
    positions: tl.tensor,
    log_weights: tl.tensor,
    lengths: tl.tensor,
    rows: tl.tensor,
    slots: tl.tensor,
    ends: tl.tensor,
    count: int,
    layer: int,
    layers: int,
    heads: int,
    table_pages: int,
    fed: int,
    scale: float,
    window: int,
    maxima: tl.tensor,
    sums: tl.tensor,
    mixed: tl.tensor,
    totals: tl.tensor,
    saved_logits: tl.tensor,
    scored: tl.tensor,
    CHUNKS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    PAGE_ROWS: tl.constexpr,
    WINDOWED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SCORED: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Program (chunk, then sequence and head): probabilities of its held rows, of the fed ones.

    Logits of a single token were saved; those of a block are computed again, which is cheaper
    than G · m of them a row.
    """
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
                entry = (b * layers + layer) * heads + h
                if tl.load(scored + entry) != 0:
                    place = (tl.load(slots + b).to(tl.int64) * layers + layer) * heads + h
                    begin = end - tl.load(rows + place)
                    start = tl.load(starts + entry).to(tl.int64)
                    for at in range(row, stop, BLOCK_N):
                        line = at + tl.arange(0, BLOCK_N)
                        valid = line < stop
                        slot = line - begin
                        flat = flat_rows(pages + place * table_pages, slot, valid, PAGE_ROWS)
                        shares = tl.zeros([BLOCK_N], tl.float32)
                        for tile in range(0, GROUP * fed, BLOCK_M):
                            query = tile + tl.arange(0, BLOCK_M)
                            known = query < GROUP * fed
                            if fed == 1:
                                saved = line[None, :].to(tl.int64) * GROUP + query[:, None]
                                logits = tl.load(
                                    saved_logits + saved,
                                    mask=known[:, None] & valid[None, :],
                                    other=HIDDEN,
                                )
                            else:
                                queries = query_tile(
                                    q,
                                    q_sequence,
                                    q_head,
                                    q_token,
                                    q_size,
                                    b,
                                    h,
                                    query,
                                    fed,
                                    GROUP,
                                    D,
                                    BLOCK_D,
                                )
                                own = query % fed
                                if WINDOWED:
                                    own += tl.load(lengths + b).to(tl.int32)
                                keys_here = key_tile(keys, flat, valid, D, BLOCK_D)
                                logits = marked_logits(
                                    tile_product(queries, keys_here) * scale,
                                    valid,
                                    slot,
                                    own,
                                    marks + place * table_pages,
                                    positions,
                                    log_weights,
                                    window,
                                    WINDOWED,
                                    WEIGHTED,
                                    PAGE_ROWS,
                                )
                            total = tl.load(
                                totals + head * GROUP * fed + query, mask=known, other=0.0
                            )
                            logits = tl.where(known[:, None], logits, HIDDEN)
                            shares += tl.sum(tl.exp2(logits - total[:, None]), 0)
                        tl.store(received + start + slot, shares / GROUP, mask=valid)
                row = stop
            head += 1
    else:
        head = program - CHUNKS
        b, h = head // heads, head % heads
        entry = (b * layers + layer) * heads + h
        wanted = False
        if h < KV_HEADS:
            wanted = tl.load(scored + entry) != 0
        if wanted:
            place = (tl.load(slots + b).to(tl.int64) * layers + layer) * heads + h
            start = tl.load(starts + entry).to(tl.int64) + tl.load(rows + place)
            cell = (layer * heads + h).to(tl.int64) * cell_count + tl.load(cells + b)
            for token in range(0, fed, BLOCK_N):
                other = token + tl.arange(0, BLOCK_N)
                keys_here = key_tile(new_keys, cell + other, other < fed, D, BLOCK_D)
                shares = tl.zeros([BLOCK_N], tl.float32)
                for tile in range(0, GROUP * fed, BLOCK_M):
                    query = tile + tl.arange(0, BLOCK_M)
                    known = query < GROUP * fed
                    queries = query_tile(
                        q, q_sequence, q_head, q_token, q_size, b, h, query, fed, GROUP, D, BLOCK_D
                    )
                    logits = fed_logits(
                        tile_product(queries, keys_here) * scale, query % fed, other, fed, window
                    )
                    total = tl.load(totals + head * GROUP * fed + query, mask=known, other=0.0)
                    logits = tl.where(known[:, None], logits, HIDDEN)
                    shares += tl.sum(tl.exp2(logits - total[:, None]), 0)
                tl.store(received + start + other, shares / GROUP, mask=other < fed)

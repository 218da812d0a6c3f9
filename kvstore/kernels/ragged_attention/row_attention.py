"""Writes the probability that each row received."""

from __future__ import annotations

import triton
import triton.language as tl

from kvstore.kernels.coded_rows import MODEL
from kvstore.kernels.ragged_attention.arguments import (
    VARYING,
    BatchRows,
    ModelNumbers,
    Partials,
    QueryRows,
    RowAttention,
)
from kvstore.kernels.ragged_attention.tiles import (
    HIDDEN,
    apply_metadata,
    first_head,
    held_logits,
    query_tile,
    slice_rows,
    staged_keys,
    staged_logits,
    tile_at,
)
from kvstore.kernels.tile_product import tile_product


@triton.jit
def write_saved_attention(
    entries: tl.tensor,
    saved_logits: tl.tensor,
    totals: tl.tensor,
    rows: tl.tensor,
    row: tl.tensor,
    stop: tl.tensor,
    earlier_tokens: tl.tensor,
    GROUP: tl.constexpr,
    BLOCK_R: tl.constexpr,
) -> None:
    """Write the attention of a layer's rows `[row, stop)` from one token's logits `[G, rows]`.

    `entries` is where the entry of the layer's row 0 would be.
    """
    BLOCK_G: tl.constexpr = triton.next_power_of_2(GROUP)
    query = tl.arange(0, BLOCK_G)
    total = tl.load(totals + query, mask=query < GROUP, other=0.0)
    for at in range(row, stop, BLOCK_R):
        line = at + tl.arange(0, BLOCK_R)
        valid = line < stop
        logits = tl.load(
            saved_logits + query[None, :].to(tl.int64) * rows + line[:, None],
            mask=valid[:, None] & (query[None, :] < GROUP),
            other=HIDDEN,
        )
        shares = tl.sum(tl.exp2(logits - total[None, :]), 1) / GROUP
        added = line < tl.where(earlier_tokens > 0, stop, 0)
        shares += tl.load(entries + line, mask=added, other=0.0)
        tl.store(entries + line, shares, mask=valid)


@triton.jit(do_not_specialize=VARYING)
def write_row_attention(
    row_attention: RowAttention,
    q: QueryRows,
    batch: BatchRows,
    partials: Partials,
    model: ModelNumbers,
    layer: int,
    count: int,
    partial_queries: int,
    staging_slots: int,
    table_pages: int,
    metadata_pages: int,
    FORM: tl.constexpr,
) -> None:
    """Program (slice, then sequence and head): probabilities of held rows, then of staged ones.

    Logits of a single token were saved. Those of a chunk are computed again, which is cheaper than
    storing G · m of them for a row. A chunk's probabilities are added to those of its earlier
    parts.
    """
    # no more than a page
    STEP: tl.constexpr = min(FORM.block_n, FORM.pages.page_rows)
    GROUP: tl.constexpr = FORM.group
    BLOCK_M: tl.constexpr = FORM.block_m
    BLOCK_N: tl.constexpr = FORM.block_n
    SLICES: tl.constexpr = FORM.slices
    staged, held, metadata, heads = batch.staged, batch.heads, batch.metadata, model.heads
    entries, totals = row_attention.entries, partials.totals
    ends = held.ends + layer * count
    program = tl.program_id(0)
    if program < SLICES:
        share = slice_rows(ends, count, SLICES, BLOCK_N)
        row = program * share
        rows = tl.load(ends + count - 1)
        last = tl.minimum(row + share, rows)
        head = 0
        if row < last:
            head = first_head(ends, count, row)
        while row < last:
            end = tl.load(ends + head)
            if end > row:
                b, h = head // heads, head % heads
                stop = tl.minimum(last, end)
                place = (tl.cast(b, tl.int64) * model.layers + layer) * heads + h
                if tl.load(held.scored + place) != 0:
                    begin = end - tl.load(held.rows + place)
                    entry = tl.load(row_attention.starts + place).to(tl.int64)
                    new_tokens = tl.load(staged.counts + b)
                    first_query = tl.load(staged.first_queries + b)
                    earlier_tokens = tl.load(staged.before + b)
                    own = earlier_tokens
                    if FORM.windowed:
                        own = own + tl.load(held.lengths + b).to(tl.int32)
                    has_metadata, has_weights = False, False
                    if FORM.windowed or FORM.weighted:
                        has_metadata = tl.load(metadata.present + place).to(tl.int32) != 0
                        has_weights = tl.load(metadata.weighted + place).to(tl.int32) != 0
                    if FORM.single:
                        write_saved_attention(
                            entries + entry - begin,
                            partials.logits,
                            totals + head * partial_queries,
                            rows,
                            row,
                            stop,
                            earlier_tokens,
                            GROUP,
                            4 * BLOCK_N,
                        )
                    else:
                        table = held.pages + place * table_pages
                        for at in range(row, stop, STEP):
                            tile, slot, valid = tile_at(
                                table, at - begin, stop - at, STEP, FORM.pages.page_rows, BLOCK_N
                            )
                            shares = tl.zeros([BLOCK_N], tl.float32)
                            for first in range(0, GROUP * new_tokens, BLOCK_M):
                                query = first + tl.arange(0, BLOCK_M)
                                known = query < GROUP * new_tokens
                                queries = query_tile(
                                    q,
                                    first_query,
                                    h,
                                    query,
                                    new_tokens,
                                    FORM.pages.key_rows.codec,
                                    FORM,
                                )
                                logits = held_logits(queries, held, tile, valid, model.scale, FORM)
                                logits = apply_metadata(
                                    logits,
                                    valid,
                                    slot,
                                    own + query % new_tokens,
                                    has_metadata,
                                    has_weights,
                                    metadata.pages + place * metadata_pages,
                                    metadata,
                                    model.window,
                                    FORM,
                                )
                                total = tl.load(
                                    totals + head * partial_queries + query, mask=known, other=0.0
                                )
                                logits = tl.where(known[:, None], logits, HIDDEN)
                                shares += tl.sum(tl.exp2(logits - total[:, None]), 0) / GROUP
                            added = valid & (slot < tl.where(earlier_tokens > 0, 2147483647, 0))
                            shares += tl.load(entries + entry + slot, mask=added, other=0.0)
                            tl.store(entries + entry + slot, shares, mask=valid)
                row = stop
            head += 1
    else:
        head = program - SLICES
        b, h = head // heads, head % heads
        place = (tl.cast(b, tl.int64) * model.layers + layer) * heads + h
        wanted = False
        if h < FORM.kv_heads:
            wanted = tl.load(held.scored + place) != 0
        if wanted:
            entry = tl.load(row_attention.starts + place).to(tl.int64) + tl.load(held.rows + place)
            slot = (layer * heads + h).to(tl.int64) * staging_slots + tl.load(staged.slots + b)
            new_tokens = tl.load(staged.counts + b)
            first_query = tl.load(staged.first_queries + b)
            earlier_tokens = tl.load(staged.before + b)
            chunk = earlier_tokens + new_tokens
            for start in range(0, chunk, BLOCK_N):
                other = start + tl.arange(0, BLOCK_N)
                keys = staged_keys(
                    staged.key_rows, slot + other, other < chunk, FORM.size, FORM.block_d
                )
                shares = tl.zeros([BLOCK_N], tl.float32)
                for first in range(0, GROUP * new_tokens, BLOCK_M):
                    query = first + tl.arange(0, BLOCK_M)
                    known = query < GROUP * new_tokens
                    queries = query_tile(q, first_query, h, query, new_tokens, MODEL, FORM)
                    logits = staged_logits(
                        tile_product(queries, keys) * model.scale,
                        query % new_tokens + earlier_tokens,
                        other,
                        chunk,
                        model.window,
                    )
                    total = tl.load(totals + head * partial_queries + query, mask=known, other=0.0)
                    logits = tl.where(known[:, None], logits, HIDDEN)
                    shares += tl.sum(tl.exp2(logits - total[:, None]), 0) / GROUP
                shares += tl.load(entries + entry + other, mask=other < earlier_tokens, other=0.0)
                tl.store(entries + entry + other, shares, mask=other < chunk)

"""Attention of one slice of a layer's rows: a partial result for each head that it touches."""

from __future__ import annotations

import triton
import triton.language as tl

from kvstore.kernels.coded_rows import INT4, element_of
from kvstore.kernels.ragged_attention.arguments import (
    VARYING,
    BatchRows,
    ModelNumbers,
    Partials,
    QueryRows,
)
from kvstore.kernels.ragged_attention.tiles import (
    HIDDEN,
    apply_metadata,
    complete_values,
    first_head,
    held_logits,
    mixed_values,
    query_tile,
    slice_rows,
    tile_at,
)


@triton.jit(do_not_specialize=VARYING)
def attend_slice(
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
    """Program (slice, query tile) computes partial results `slice + head`.

    These numbers differ, because a later partial result is of a later slice or a later head.
    """
    # no more than a page
    STEP: tl.constexpr = min(FORM.block_n, FORM.pages.page_rows)
    GROUP: tl.constexpr = FORM.group
    BLOCK_M: tl.constexpr = FORM.block_m
    BLOCK_N: tl.constexpr = FORM.block_n
    D: tl.constexpr = FORM.size
    # without them a sum of zeros would take eight registers of a thread
    OFFSETS: tl.constexpr = FORM.pages.value_rows.codec == INT4
    staged, held, metadata, heads = batch.staged, batch.heads, batch.metadata, model.heads
    ends = held.ends + layer * count
    number = tl.program_id(0)
    in_tile = tl.arange(0, BLOCK_M)
    query = tl.program_id(1) * BLOCK_M + in_tile
    if FORM.split:
        query = in_tile % (BLOCK_M // 2)
    size = element_of(tl.arange(0, FORM.block_d), FORM.pages.value_rows.codec, D)
    share = slice_rows(ends, count, FORM.slices, BLOCK_N)
    row = number * share
    rows = tl.load(ends + count - 1)
    last = tl.minimum(row + share, rows)
    head = 0
    if row < last:
        head = first_head(ends, count, row)
    while row < last:
        end = tl.load(ends + head)
        if end > row:
            stop = tl.minimum(last, end)
            b, h = head // heads, head % heads
            new_tokens = tl.load(staged.counts + b)
            # longer chunks of other sequences have more tiles of queries
            if tl.program_id(1) * BLOCK_M < GROUP * new_tokens:
                place = (tl.cast(b, tl.int64) * model.layers + layer) * heads + h
                begin = end - tl.load(held.rows + place)
                known = query < GROUP * new_tokens
                if FORM.split:
                    known = known & (in_tile < BLOCK_M // 2)
                first_query = tl.load(staged.first_queries + b)
                queries = query_tile(
                    q, first_query, h, query, new_tokens, FORM.pages.key_rows.codec, FORM
                )
                own = query % new_tokens + tl.load(staged.before + b)
                if FORM.windowed:
                    own = own + tl.load(held.lengths + b).to(tl.int32)
                has_metadata, has_weights = False, False
                if FORM.windowed or FORM.weighted:
                    has_metadata = tl.load(metadata.present + place).to(tl.int32) != 0
                    has_weights = tl.load(metadata.weighted + place).to(tl.int32) != 0
                wants_scores = False
                if FORM.scored:
                    wants_scores = tl.load(held.scored + place) != 0
                top = tl.full([BLOCK_M], HIDDEN, tl.float32)
                # added up at the end, as `common` is: what a row's offset adds to all elements
                total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
                common = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
                result = tl.zeros([BLOCK_M, FORM.block_d], tl.float32)
                table = held.pages + place * table_pages
                for at in range(row, stop, STEP):
                    tile, slot, valid = tile_at(
                        table, at - begin, stop - at, STEP, FORM.pages.page_rows, BLOCK_N
                    )
                    logits = held_logits(queries, held, tile, valid, model.scale, FORM)
                    logits = apply_metadata(
                        logits,
                        valid,
                        slot,
                        own,
                        has_metadata,
                        has_weights,
                        metadata.pages + place * metadata_pages,
                        metadata,
                        model.window,
                        FORM,
                    )
                    if FORM.scored and FORM.single:
                        if wants_scores:
                            # a query's logits side by side: few addresses take few registers
                            saved = query[:, None].to(tl.int64) * rows + begin
                            tl.store(
                                partials.logits + saved + slot[None, :],
                                logits,
                                mask=known[:, None] & valid[None, :],
                            )
                    above = tl.maximum(top, tl.max(logits, 1))
                    weights = tl.exp2(logits - above[:, None])
                    fade = tl.exp2(top - above)
                    total = total * fade[:, None] + weights
                    further, added = mixed_values(weights, held, tile, valid, FORM)
                    result = result * fade[:, None] + further
                    if OFFSETS:
                        common = common * fade[:, None] + added
                    top = above
                result = complete_values(result, held.elements, FORM)
                if OFFSETS:
                    result += tl.sum(common, 1)[:, None]
                partial = (number + head).to(tl.int64) * partial_queries + query
                tl.store(partials.maxima + partial, top, mask=known)
                tl.store(partials.sums + partial, tl.sum(total, 1), mask=known)
                wanted = known[:, None] & (size[None, :] < D)
                tl.store(partials.mixed + partial[:, None] * D + size[None, :], result, mask=wanted)
            row = stop
        head += 1

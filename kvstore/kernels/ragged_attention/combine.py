"""Combines the partial results of a head, and adds the rows that the step itself stages."""

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
)
from kvstore.kernels.ragged_attention.tiles import (
    HIDDEN,
    mix,
    query_tile,
    slice_rows,
    staged_keys,
    staged_logits,
    staged_values,
)
from kvstore.kernels.tile_product import tile_product

# partial results of a head that are read side by side
COMBINED = tl.constexpr(4)


@triton.jit(do_not_specialize=VARYING)
def combine_partials(
    out: QueryRows,
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
    """Program (sequence and head, query tile): combine partial results, then the staged rows."""
    GROUP: tl.constexpr = FORM.group
    BLOCK_M: tl.constexpr = FORM.block_m
    BLOCK_N: tl.constexpr = FORM.block_n
    BLOCK_D: tl.constexpr = FORM.block_d
    D: tl.constexpr = FORM.size
    staged, heads = batch.staged, model.heads
    ends = batch.heads.ends + layer * count
    head = tl.program_id(0)
    b, h = head // heads, head % heads
    new_tokens = tl.load(staged.counts + b)
    if (h < FORM.kv_heads) & (tl.program_id(1) * BLOCK_M < GROUP * new_tokens):
        query = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
        known = query < GROUP * new_tokens
        size = tl.arange(0, BLOCK_D)
        wanted = known[:, None] & (size[None, :] < D)
        share = slice_rows(ends, count, FORM.slices, BLOCK_N)
        end = tl.load(ends + head)
        place = (tl.cast(b, tl.int64) * model.layers + layer) * heads + h
        held = tl.load(batch.heads.rows + place)
        first = (end - held) // share
        parts = tl.where(held > 0, (end - 1) // share - first + 1, 0)
        top = tl.full([BLOCK_M], HIDDEN, tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        result = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for number in range(0, parts, COMBINED):
            for further in tl.static_range(COMBINED):
                # no query has a partial result after the last one
                there = query < tl.where(parts > number + further, GROUP * new_tokens, 0)
                partial = (first + head + number + further).to(tl.int64) * partial_queries + query
                their_top = tl.load(partials.maxima + partial, mask=there, other=HIDDEN)
                their_total = tl.load(partials.sums + partial, mask=there, other=0.0)
                theirs = tl.load(
                    partials.mixed + partial[:, None] * D + size[None, :],
                    mask=there[:, None] & (size[None, :] < D),
                    other=0.0,
                )
                above = tl.maximum(top, their_top)
                fade, rise = tl.exp2(top - above), tl.exp2(their_top - above)
                total = total * fade + their_total * rise
                result = result * fade[:, None] + theirs * rise[:, None]
                top = above
        first_query = tl.load(staged.first_queries + b)
        queries = query_tile(q, first_query, h, query, new_tokens, MODEL, FORM)
        token = query % new_tokens + tl.load(staged.before + b)
        chunk = new_tokens + tl.load(staged.before + b)
        slot = (layer * heads + h).to(tl.int64) * staging_slots + tl.load(staged.slots + b)
        for start in range(0, chunk, BLOCK_N):
            other = start + tl.arange(0, BLOCK_N)
            there = other < chunk
            keys = staged_keys(staged.key_rows, slot + other, there, D, BLOCK_D)
            logits = staged_logits(
                tile_product(queries, keys) * model.scale, token, other, chunk, model.window
            )
            above = tl.maximum(top, tl.max(logits, 1))
            weights = tl.exp2(logits - above[:, None])
            fade = tl.exp2(top - above)
            total = total * fade + tl.sum(weights, 1)
            result *= fade[:, None]
            result += mix(
                weights, staged_values(staged.value_rows, slot + other, there, D, BLOCK_D)
            )
            top = above
        target = out.data + (first_query + query % new_tokens).to(tl.int64)[:, None] * out.token
        target += (h * GROUP + query // new_tokens)[:, None] * out.head + size[None, :] * out.size
        TYPE: tl.constexpr = out.data.dtype.element_ty  # type: ignore[attr-defined]
        tl.store(target, (result / total[:, None]).to(TYPE), mask=wanted)
        if FORM.scored:
            tl.store(
                partials.totals + head * partial_queries + query, top + tl.log2(total), mask=known
            )

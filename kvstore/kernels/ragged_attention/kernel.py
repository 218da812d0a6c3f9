"""Ragged paged attention on a GPU, split over equal chunks of rows.

After Flash-Decoding (Dao et al. 2023). The rows of all heads of a layer form one line, sequence by
sequence and head by head. Its prefix sums are found on the device, and each chunk of the line is a
program whatever the heads' lengths, so that skew costs nothing and the host never waits. A chunk
leaves a maximum, a sum and mixed values for each head that it touches (a *piece*); a second launch
joins a head's pieces and adds the rows that the step itself feeds; a third hands each row the
probability it received. No atomics and a fixed order of sums: equal inputs give equal bits. The cut
depends on the whole batch, so a sequence's last bits may differ between batches.

Bytes and operations are counted in README.md.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from kvstore.kernels.coded_rows import page_options
from kvstore.kernels.device_batch import DeviceBatch, DeviceScratch
from kvstore.kernels.paged_batch import PagedBatch, StepScratch
from kvstore.kernels.ragged_attention.hand_back import hand_back
from kvstore.kernels.ragged_attention.tiles import (
    HIDDEN,
    VARYING,
    chunk_rows,
    fed_keys,
    fed_logits,
    fed_values,
    first_head,
    held_logits,
    marked_logits,
    mix,
    mixed_values,
    query_tile,
)
from kvstore.kernels.tile_product import tile_product

_LOG2_E = math.log2(math.e)
# chunks per multiprocessor: enough that the last ones to finish do not matter
_CHUNKS_PER_PROCESSOR = 8
_MAX_QUERY_TILE = 64
_ROW_TILE = 64
# exact f32 products run outside the tensor cores, out of registers: small tiles
_ROW_TILE_F32 = 32
# two of them go to the page table's loads; the rest keep two tiles of rows on their way
_STAGES = 5
# pieces of a head that are read side by side
_JOINED = tl.constexpr(4)


def attend(
    q: torch.Tensor,
    batch: PagedBatch,
    layer: int,
    scratch: StepScratch,
    scale: float,
    sliding_window: int | None,
) -> torch.Tensor:
    """See op.py."""
    heads = int(batch.tables.kv_heads[layer])
    return attend_on_device(
        q,
        batch.on_device,
        layer,
        scratch.on_device,
        kv_heads=heads,
        scale=scale,
        sliding_window=sliding_window,
    )


def attend_on_device(
    q: torch.Tensor,
    batch: DeviceBatch,
    layer: int,
    scratch: DeviceScratch,
    *,
    kv_heads: int,
    scale: float,
    sliding_window: int | None,
    chunks: int = 0,
) -> torch.Tensor:
    """The same, of a batch that is on the device; nothing here waits for it.

    The layer has `kv_heads` of the tables' H. Where all feed a single token, scored entries are
    written, and added to otherwise. `chunks`: how often the line is cut, 0 for what the device
    needs.
    """
    _, query_heads, size = q.shape
    group = query_heads // kv_heads
    queries, (sequences, layers, heads) = group * batch.most, batch.rows.shape
    tile = _tile_for(queries)
    tiles = triton.cdiv(queries, tile)
    chunks = chunks or chunks_for(q.device, tiles)
    scored = scratch.scored_layers[layer]
    lines = sequences * heads
    out = torch.empty_like(q)
    # one piece per chunk, and one more for every head that a cut runs through
    maxima, sums = torch.empty(2, chunks + lines, queries, device=q.device).unbind()
    mixed = torch.empty(chunks + lines, queries, size, device=q.device)
    saved = batch.row_bound if scored and batch.single else 0
    elements = batch.store.arena.view(batch.store.coding.dtype)
    shared = (
        q,
        *q.stride(),
        batch.new_keys,
        batch.new_values,
        batch.cells,
        batch.before,
        batch.counts,
        batch.first_queries,
        batch.new_keys.shape[2],
        elements,
        batch.store.arena,
        batch.pages,
        batch.pages.shape[3],
        batch.marks,
        batch.marks.shape[3],
        batch.marked,
        batch.weighted,
        batch.positions,
        batch.log_weights,
        batch.lengths,
        batch.rows,
        batch.ends[layer],
        lines,
        layer,
        layers,
        heads,
        queries,
        scale * _LOG2_E,
        sliding_window or 0,
        maxima,
        sums,
        mixed,
        torch.empty(lines, queries, device=q.device),
        torch.empty(saved, group, device=q.device),
        scratch.scored,
    )
    options = page_options(batch.store.division) | {
        "CHUNKS": chunks,
        "KV_HEADS": kv_heads,
        "GROUP": group,
        "MARK_ROWS": batch.mark_rows,
        "WINDOWED": sliding_window is not None,
        "WEIGHTED": batch.weighted_layers[layer],
        "SCORED": scored,
        "SINGLE": batch.single,
        "D": size,
        "BLOCK_D": max(16, triton.next_power_of_2(size)),
        "BLOCK_M": tile,
        "BLOCK_N": _ROW_TILE_F32 if q.dtype == torch.float32 else _ROW_TILE,
        "num_warps": 4,
    }
    _attend_chunk[(chunks, tiles)](*shared, **options, num_stages=_STAGES)
    _join_pieces[(lines, tiles)](out, *out.stride(), *shared, **options, num_stages=2)
    if scored:
        hand_back[(chunks + lines,)](
            scratch.received, scratch.starts, *shared, **options, num_stages=2
        )
    return out


def chunks_for(device: torch.device, query_tiles: int) -> int:
    """How many chunks keep the device busy when each is run for every tile of queries."""
    if device.type != "cuda":
        return _CHUNKS_PER_PROCESSOR
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, _CHUNKS_PER_PROCESSOR * processors // query_tiles)


def _tile_for(queries: int) -> int:
    return int(min(_MAX_QUERY_TILE, max(16, triton.next_power_of_2(queries))))


def line_ends(rows: torch.Tensor, ends: torch.Tensor) -> None:
    """Write where each head's rows end in its layer's line, `ends` int32 `[L, B · H]`.

    `rows` int32 `[B, L, H]`; once a step.
    """
    _, layers, heads = rows.shape
    _line_ends[(layers,)](ends, rows, layers, heads, ends.shape[1], BLOCK=1024)


@triton.jit
def _line_ends(
    ends: tl.tensor,
    rows: tl.tensor,
    layers: int,
    heads: int,
    count: int,
    BLOCK: tl.constexpr,
) -> None:
    """Program (layer)."""
    layer = tl.program_id(0)
    before = 0
    for first in range(0, count, BLOCK):
        line = first + tl.arange(0, BLOCK)
        valid = line < count
        place = (line // heads * layers + layer) * heads + line % heads
        held = tl.load(rows + place, mask=valid, other=0)
        tl.store(ends + layer * count + line, before + tl.cumsum(held, 0), mask=valid)
        before += tl.sum(held, 0)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=["ends"])
def _attend_chunk(
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
    mark_pages: int,
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
    KEY_WIDTH: tl.constexpr,
    VALUE_CODEC: tl.constexpr,
    VALUE_PAGE: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
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
    """Program (chunk, query tile). Piece `chunk + head`: each later one is of a later of both."""
    chunk = tl.program_id(0)
    query = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    size = tl.arange(0, BLOCK_D)
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
                first_query = tl.load(first_queries + b)
                queries = query_tile(
                    q, q_token, q_head, q_size, first_query, h, query, fed, GROUP, D, BLOCK_D
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
                total = tl.zeros([BLOCK_M], tl.float32)
                result = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
                for at in range(row, stop, BLOCK_N):
                    line = at + tl.arange(0, BLOCK_N)
                    valid = line < stop
                    slot = line - begin
                    page = tl.load(
                        pages + place * table_pages + slot // PAGE_ROWS, mask=valid, other=0
                    ).to(tl.int64)
                    in_page = slot % PAGE_ROWS
                    logits = held_logits(
                        queries,
                        elements,
                        arena,
                        page,
                        in_page,
                        valid,
                        KEY_CODEC,
                        KEY_PAGE,
                        KEY_WIDTH,
                        D,
                        BLOCK_D,
                    )
                    logits = marked_logits(
                        logits * scale,
                        valid,
                        slot,
                        own,
                        is_marked,
                        is_weighted,
                        marks + place * mark_pages,
                        positions,
                        log_weights,
                        window,
                        WINDOWED,
                        WEIGHTED,
                        MARK_ROWS,
                    )
                    if SCORED and SINGLE:
                        if wants_scores:
                            saved = line[None, :].to(tl.int64) * GROUP + query[:, None]
                            tl.store(
                                saved_logits + saved, logits, mask=known[:, None] & valid[None, :]
                            )
                    above = tl.maximum(top, tl.max(logits, 1))
                    weights = tl.exp2(logits - above[:, None])
                    fade = tl.exp2(top - above)
                    total = total * fade + tl.sum(weights, 1)
                    result *= fade[:, None]
                    result += mixed_values(
                        weights,
                        elements,
                        arena,
                        page,
                        in_page,
                        valid,
                        VALUE_CODEC,
                        VALUE_PAGE,
                        VALUE_WIDTH,
                        VALUE_FIRST,
                        D,
                        BLOCK_D,
                    )
                    top = above
                piece = (chunk + head).to(tl.int64) * piece_queries + query
                tl.store(maxima + piece, top, mask=known)
                tl.store(sums + piece, total, mask=known)
                wanted = known[:, None] & (size[None, :] < D)
                tl.store(mixed + piece[:, None] * D + size[None, :], result, mask=wanted)
            row = stop
        head += 1


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=["ends"])
def _join_pieces(
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
    mark_pages: int,
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
    KEY_WIDTH: tl.constexpr,
    VALUE_CODEC: tl.constexpr,
    VALUE_PAGE: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
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
        for number in range(0, pieces, _JOINED):
            for further in tl.static_range(_JOINED):
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
            q, q_token, q_head, q_size, first_query, h, query, fed, GROUP, D, BLOCK_D
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

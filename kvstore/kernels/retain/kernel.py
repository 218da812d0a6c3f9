"""Retention of all sequences, layers and heads on a GPU in one launch, pages included.

A program owns a head: it decides by the rule which of the R held and m fed rows stay, takes pages
from a free list on the device, writes the new rows into victims' slots or appends them, closes
what holes are left from the tail, and gives pages back. New rows are coded on the way where the
sequence's codec asks for it. Heads share nothing but the free lists, whose counters are the only
atomics: what a head holds afterwards has the same bits each time, but which page it lies in depends
on which program asked first.

Where the host keeps the accounts of pages, the same program runs in two halves, `decide` and
`carry`, between which the host extends the tables. Bytes and operations are counted in README.md.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from kvstore.kernels.coded_rows import page_options
from kvstore.kernels.device_batch import DeviceBatch, DeviceScratch
from kvstore.kernels.flat_rows import flat_rows
from kvstore.kernels.paged_batch import PagedBatch, StepScratch
from kvstore.kernels.retain.decision import (
    RULE_WORDS,
    budget_of,
    decide_rows,
    may_lose,
    positions_of,
    tile_marks,
)
from kvstore.kernels.retain.free_pages import FreePages, give_back_pages, take_pages
from kvstore.kernels.retain.moves import arriving_rows, list_moves, place_rows

# batches and pools of any size share their compiled form
_VARYING = [
    "cell_count",
    "table_pages",
    "metadata_pages",
    "layers",
    "heads",
    "page_capacity",
    "mark_capacity",
]
ROW_TILE = 1024
MOVE_TILE = 16


def decide(batch: PagedBatch, scratch: StepScratch) -> NDArray[np.int32]:
    """See op.py. Waits for the device once, for the rows that heads will hold."""
    here = batch.on_device
    after = here.rows.clone()
    _launch(here, scratch.on_device, after, None, decides=True)
    rows_after: NDArray[np.int32] = after.cpu().numpy()
    return rows_after


def apply_decision(batch: PagedBatch, scratch: StepScratch, rows_after: NDArray[np.int32]) -> None:
    """See op.py."""
    here = batch.on_device
    after = torch.from_numpy(np.ascontiguousarray(rows_after)).to(here.rows.device)
    _launch(here, scratch.on_device, after, None, decides=False)


def retain(
    batch: DeviceBatch, scratch: DeviceScratch, free_pages: FreePages, free_marks: FreePages
) -> None:
    """Apply every head's rule, and change its rows and tables in place; the host is not asked.

    A head holds `ceil(R / page_rows)` pages, and as many mark pages as its rows need if it is
    marked. Heads that may lose rows have R + m entries in the scratch. Lengths and line ends are
    left to the caller.
    """
    _launch(batch, scratch, batch.rows, (free_pages, free_marks), decides=True)


def _launch(
    batch: DeviceBatch,
    scratch: DeviceScratch,
    after: torch.Tensor,
    free: tuple[FreePages, FreePages] | None,
    *,
    decides: bool,
) -> None:
    """`after` int32 `[B, L, H]`: the rows that heads will hold, found or given."""
    sequences, layers, heads = batch.rows.shape
    size, entries = batch.new_keys.shape[3], scratch.received.numel()
    for part in (batch.new_keys, batch.new_values, batch.rows, batch.pages, batch.marks):
        assert part.is_contiguous(), "rows lie one after another"
    # ranks of 64 bits, then pairs of 32
    moves = torch.empty(max(1, entries), dtype=torch.int64, device=batch.rows.device)
    nothing = (after, 0, after, after, after, after)
    coding = batch.store.coding
    retain_head[(sequences * layers * heads,)](
        batch.new_keys,
        batch.new_values,
        batch.cells,
        batch.before,
        batch.counts,
        batch.new_keys.shape[2],
        batch.flags,
        batch.lengths,
        batch.store.arena.view(coding.dtype),
        batch.store.arena,
        batch.positions,
        batch.scores,
        batch.metadata_flags,
        batch.log_weights,
        batch.pages,
        batch.pages.shape[3],
        batch.marks,
        batch.marks.shape[3],
        batch.marked,
        batch.rows,
        after,
        batch.rules,
        batch.kv_heads,
        layers,
        heads,
        scratch.starts,
        scratch.received,
        scratch.stays,
        moves.view(torch.int32),
        moves,
        *(nothing if free is None else free[0].arguments()),
        *(nothing if free is None else free[1].arguments()),
        **page_options(batch.store.page_layout),
        MARK_ROWS=batch.metadata_page_rows,
        WEIGHTED=any(batch.weighted_layers),
        DECIDES=decides,
        CARRIES=free is not None or not decides,
        TAKES=free is not None,
        D=size,
        BLOCK_D=triton.next_power_of_2(size),
        BLOCK_H=triton.next_power_of_2((size + 1) // 2),
        BLOCK_R=ROW_TILE,
        BLOCK_K=MOVE_TILE,
        num_warps=4,
    )


@triton.jit(do_not_specialize=_VARYING)
def retain_head(
    new_keys: tl.tensor,
    new_values: tl.tensor,
    cells: tl.tensor,
    before: tl.tensor,
    counts: tl.tensor,
    cell_count: int,
    new_flags: tl.tensor,
    lengths: tl.tensor,
    elements: tl.tensor,
    arena: tl.tensor,
    positions: tl.tensor,
    scores: tl.tensor,
    flags: tl.tensor,
    log_weights: tl.tensor,
    pages: tl.tensor,
    table_pages: int,
    marks: tl.tensor,
    metadata_pages: int,
    marked: tl.tensor,
    rows: tl.tensor,
    rows_after: tl.tensor,
    rules: tl.tensor,
    kv_heads: tl.tensor,
    layers: int,
    heads: int,
    starts: tl.tensor,
    received: tl.tensor,
    stays: tl.tensor,
    moves: tl.tensor,
    ranks: tl.tensor,
    page_ring: tl.tensor,
    page_capacity: int,
    pages_taken: tl.tensor,
    pages_returned: tl.tensor,
    page_fence: tl.tensor,
    pages_exhausted: tl.tensor,
    mark_ring: tl.tensor,
    mark_capacity: int,
    marks_taken: tl.tensor,
    marks_returned: tl.tensor,
    mark_fence: tl.tensor,
    marks_exhausted: tl.tensor,
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
    MARK_ROWS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    DECIDES: tl.constexpr,
    CARRIES: tl.constexpr,
    TAKES: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Program (sequence, layer, head)."""
    entry = tl.program_id(0)
    b, layer, h = entry // (layers * heads), entry // heads % layers, entry % heads
    if h < tl.load(kv_heads + layer):
        place = entry.to(tl.int64)
        rule = rules + place * RULE_WORDS
        table, mark_table = pages + place * table_pages, marks + place * metadata_pages
        held, length = tl.load(rows + place), tl.load(lengths + b).to(tl.int64)
        fed, cell = tl.load(before + b) + tl.load(counts + b), tl.load(cells + b)
        total = held + fed
        bounded = may_lose(rule)
        budget, scored = budget_of(rule, length + fed)
        start = tl.load(starts + place).to(tl.int64)
        after, arriving = total, fed
        if DECIDES:
            if bounded:
                after, arriving = decide_rows(
                    rule,
                    mark_table,
                    positions,
                    scores,
                    flags,
                    new_flags + cell,
                    received + start,
                    stays + start,
                    ranks + start,
                    held,
                    fed,
                    length,
                    scored,
                    budget,
                    MARK_ROWS,
                    BLOCK_R,
                )
        else:
            after = tl.load(rows_after + place)
            if bounded:
                arriving = arriving_rows(stays + start, held, total, BLOCK_R)
        if CARRIES:
            is_marked = tl.load(marked + place).to(tl.int32) != 0
            moving, listed, has_list = arriving, 0, 0
            if bounded & (after < total):
                has_list = 1
                moving, listed = list_moves(
                    stays + start, moves + 2 * start, held, total, after, arriving, BLOCK_R
                )
            if TAKES:
                have, need = tl.cdiv(held, PAGE_ROWS), tl.cdiv(after, PAGE_ROWS)
                enough = take_pages(
                    table,
                    have,
                    need,
                    page_ring,
                    page_capacity,
                    pages_taken,
                    page_fence,
                    pages_exhausted,
                )
                if is_marked:
                    enough *= take_pages(
                        mark_table,
                        tl.cdiv(held, MARK_ROWS),
                        tl.cdiv(after, MARK_ROWS),
                        mark_ring,
                        mark_capacity,
                        marks_taken,
                        mark_fence,
                        marks_exhausted,
                    )
                tl.debug_barrier()
                if enough == 0:
                    moving, after, scored = moving * 0, held, scored & False
            fed_row = ((layer * heads + h).to(tl.int64) * cell_count + cell) * D
            for first in range(0, moving, BLOCK_K):
                move = first + tl.arange(0, BLOCK_K)
                valid = move < moving
                source, target = held + move, held + move - listed
                if has_list != 0:
                    # nothing is read for a place without a move
                    source = tl.load(moves + 2 * (start + move) + 1, mask=valid, other=held)
                    hole = tl.load(moves + 2 * (start + move), mask=move < listed, other=0)
                    target = tl.where(move < listed, hole, target)
                new, old = valid & (source >= held), valid & (source < held)
                page = tl.load(table + target // PAGE_ROWS, mask=valid, other=0).to(tl.int64)
                old_page = tl.load(table + source // PAGE_ROWS, mask=old, other=0).to(tl.int64)
                into, stored = target % PAGE_ROWS, source % PAGE_ROWS
                given = fed_row + (source - held) * D
                place_rows(
                    elements,
                    arena,
                    new_keys,
                    page,
                    into,
                    old_page,
                    stored,
                    given,
                    new,
                    old,
                    KEY_CODEC,
                    KEY_PAGE,
                    0,
                    KEY_CODES,
                    KEY_SCALES,
                    D,
                    BLOCK_D,
                    BLOCK_H,
                )
                place_rows(
                    elements,
                    arena,
                    new_values,
                    page,
                    into,
                    old_page,
                    stored,
                    given,
                    new,
                    old,
                    VALUE_CODEC,
                    VALUE_PAGE,
                    VALUE_FIRST,
                    VALUE_CODES,
                    VALUE_SCALES,
                    D,
                    BLOCK_D,
                    BLOCK_H,
                )
                if is_marked:
                    to = flat_rows(mark_table, target, valid, MARK_ROWS)
                    position, mark = positions_of(
                        mark_table, positions, source, held, length, MARK_ROWS
                    )
                    tl.store(positions + to, position, mask=valid)
                    flag = tl.load(flags + mark, mask=old, other=0)
                    new_flag = tl.load(new_flags + cell + source - held, mask=new, other=0)
                    tl.store(flags + to, flag | new_flag, mask=valid)
                    if scored:
                        grown = tl.load(received + start + source, mask=valid, other=0.0)
                        tl.store(scores + to, grown, mask=valid)
                    if WEIGHTED:
                        weight = tl.load(log_weights + mark, mask=old, other=0.0)
                        tl.store(log_weights + to, weight, mask=valid)
            if scored:
                # of rows that stay where they are; slots filled above are no longer theirs
                for first in range(0, tl.minimum(held, after), BLOCK_R):
                    row, mark, _ = tile_marks(mark_table, first, held, MARK_ROWS, BLOCK_R)
                    here = row < tl.minimum(held, after)
                    kept = tl.load(stays + start + row, mask=here, other=0) != 0
                    grown = tl.load(received + start + row, mask=here, other=0.0)
                    tl.store(scores + mark, grown, mask=here & kept)
            if TAKES:
                give_back_pages(
                    table,
                    tl.cdiv(held, PAGE_ROWS),
                    tl.cdiv(after, PAGE_ROWS),
                    page_ring,
                    page_capacity,
                    pages_returned,
                )
                if is_marked:
                    give_back_pages(
                        mark_table,
                        tl.cdiv(held, MARK_ROWS),
                        tl.cdiv(after, MARK_ROWS),
                        mark_ring,
                        mark_capacity,
                        marks_returned,
                    )
        if DECIDES:
            tl.store(rows_after + place, after)

"""Retention of all sequences, layers and heads on a GPU in one launch, pages included.

A program owns a head: it decides by the rule which of the R held and m fed rows stay, takes pages
from a free list on the device, writes the new rows into victims' slots or appends them, closes
what holes are left from the tail, and gives pages back. New rows are coded on the way where the
sequence's codec asks for it. Heads share nothing but the free lists, whose counters are the only
atomics: what a head holds afterwards has the same bits each time, but which page it lies in depends
on which program asked first.

Where the host keeps the accounts of pages, the same program runs in two halves, `decide` and
`apply_decision`, between which the host extends the tables. Bytes and operations are counted in
README.md.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from kvstore.kernels.coded_rows import page_form
from kvstore.kernels.device_batch import DeviceBatch, DeviceScratch
from kvstore.kernels.flat_rows import flat_rows
from kvstore.kernels.paged_batch import PagedBatch
from kvstore.kernels.retain.arguments import (
    Decision,
    FreeQueue,
    HeadMetadata,
    HeadRows,
    RetainForm,
    StagedTokens,
)
from kvstore.kernels.retain.decision import (
    RULE_WORDS,
    budget_of,
    decide_rows,
    may_lose,
    metadata_tile,
    positions_of,
)
from kvstore.kernels.retain.free_pages import FreePages, return_pages, take_pages
from kvstore.kernels.retain.moves import arriving_rows, list_moves, place_rows
from kvstore.kernels.step_scratch import StepScratch

ROW_TILE = 1024
MOVE_TILE = 16


def decide(batch: PagedBatch, scratch: StepScratch) -> NDArray[np.int32]:
    """Decide as op.py defines; waits for the device once, for the rows that heads will hold."""
    here = batch.on_device
    after = here.rows.clone()
    _launch(here, scratch.on_device, after, None, decides=True)
    rows_after: NDArray[np.int32] = after.cpu().numpy()
    return rows_after


def apply_decision(batch: PagedBatch, scratch: StepScratch, rows_after: NDArray[np.int32]) -> None:
    """Apply a decision as op.py defines."""
    here = batch.on_device
    after = torch.from_numpy(np.ascontiguousarray(rows_after)).to(here.rows.device)
    _launch(here, scratch.on_device, after, None, decides=False)


def retain(
    batch: DeviceBatch, scratch: DeviceScratch, free_pages: FreePages, free_metadata: FreePages
) -> None:
    """Apply every head's rule, and change its rows and tables in place; the host is not asked.

    A head holds `ceil(R / page_rows)` pages, and as many metadata pages as its rows need if it
    has metadata. Heads that may lose rows have R + m entries in the scratch. The
    caller updates lengths and row ends.
    """
    _launch(batch, scratch, batch.rows, (free_pages, free_metadata), decides=True)


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
    size, entries = batch.new_keys.shape[3], scratch.row_attention.numel()
    for part in (batch.new_keys, batch.new_values, batch.rows, batch.pages, batch.metadata):
        assert part.is_contiguous(), "rows lie one after another"
    # ranks of 64 bits, then pairs of 32
    moves = torch.empty(max(1, entries), dtype=torch.int64, device=batch.rows.device)
    free_pages, free_metadata = (
        (_no_queue(after), _no_queue(after))
        if free is None
        else (free[0].arguments(), free[1].arguments())
    )
    retain_head[(sequences * layers * heads,)](
        StagedTokens(
            batch.new_keys,
            batch.new_values,
            batch.flags,
            batch.staging_slots,
            batch.before,
            batch.counts,
        ),
        HeadRows(
            batch.row_pages.arena.view(batch.row_pages.layout.dtype),
            batch.row_pages.arena,
            batch.pages,
            batch.rows,
            after,
            batch.lengths,
            batch.rules,
            batch.kv_heads,
        ),
        HeadMetadata(
            batch.metadata,
            batch.has_metadata,
            batch.positions,
            batch.scores,
            batch.metadata_flags,
            batch.log_weights,
        ),
        Decision(
            scratch.starts, scratch.row_attention, scratch.stays, moves.view(torch.int32), moves
        ),
        free_pages,
        free_metadata,
        batch.new_keys.shape[2],
        batch.pages.shape[3],
        batch.metadata.shape[3],
        FORM=RetainForm(
            pages=page_form(batch.row_pages.page_layout),
            layers=layers,
            heads=heads,
            metadata_page_rows=batch.metadata_page_rows,
            weighted=any(batch.weighted_layers),
            decides=decides,
            applies=free is not None or not decides,
            takes=free is not None,
            size=size,
            block_d=triton.next_power_of_2(size),
            block_h=triton.next_power_of_2((size + 1) // 2),
            block_r=ROW_TILE,
            block_k=MOVE_TILE,
        ),
        num_warps=4,
        # a product and a sum that are fused are rounded once: other scores than the CPU's
        enable_fp_fusion=False,
    )


def _no_queue(unused: torch.Tensor) -> FreeQueue:
    """Return a queue for launches that take no pages; `unused` is any tensor."""
    return FreeQueue(unused, 0, unused, unused, unused, unused)


@triton.jit(do_not_specialize=["staging_slots", "table_pages", "metadata_pages"])
def retain_head(
    staged: StagedTokens,
    heads: HeadRows,
    metadata: HeadMetadata,
    decision: Decision,
    free_pages: FreeQueue,
    free_metadata: FreeQueue,
    staging_slots: int,
    table_pages: int,
    metadata_pages: int,
    FORM: tl.constexpr,
) -> None:
    """Program (sequence, layer, head): decide which rows stay, and move them into their slots."""
    PAGE_ROWS: tl.constexpr = FORM.pages.page_rows
    M_ROWS: tl.constexpr = FORM.metadata_page_rows
    BLOCK_R: tl.constexpr = FORM.block_r
    BLOCK_K: tl.constexpr = FORM.block_k
    D: tl.constexpr = FORM.size
    stays, moves, grown_scores = decision.stays, decision.moves, decision.row_attention
    entry = tl.program_id(0)
    b = entry // (FORM.layers * FORM.heads)
    layer, h = entry // FORM.heads % FORM.layers, entry % FORM.heads
    if h < tl.load(heads.kv_heads + layer):
        place = entry.to(tl.int64)
        rule = heads.rules + place * RULE_WORDS
        table = heads.pages + place * table_pages
        metadata_table = metadata.pages + place * metadata_pages
        held, length = tl.load(heads.rows + place), tl.load(heads.lengths + b).to(tl.int64)
        new_tokens = tl.load(staged.before + b) + tl.load(staged.counts + b)
        cell = tl.load(staged.slots + b)
        total = held + new_tokens
        bounded = may_lose(rule)
        budget, scored = budget_of(rule, length + new_tokens)
        start = tl.load(decision.starts + place).to(tl.int64)
        after, arriving = total, new_tokens
        if FORM.decides:
            if bounded:
                after, arriving = decide_rows(
                    rule,
                    metadata_table,
                    metadata,
                    staged.flags + cell,
                    (grown_scores + start, stays + start, decision.ranks + start),
                    held,
                    new_tokens,
                    length,
                    scored,
                    budget,
                    FORM,
                )
        else:
            after = tl.load(heads.rows_after + place)
            if bounded:
                arriving = arriving_rows(stays + start, held, total, BLOCK_R)
        if FORM.applies:
            has_metadata = tl.load(metadata.present + place).to(tl.int32) != 0
            moving, listed, has_list = arriving, 0, 0
            if bounded & (after < total):
                has_list = 1
                moving, listed = list_moves(
                    stays + start, moves + 2 * start, held, total, after, arriving, BLOCK_R
                )
            if FORM.takes:
                have, need = tl.cdiv(held, PAGE_ROWS), tl.cdiv(after, PAGE_ROWS)
                enough = take_pages(table, have, need, free_pages)
                if has_metadata:
                    enough *= take_pages(
                        metadata_table,
                        tl.cdiv(held, M_ROWS),
                        tl.cdiv(after, M_ROWS),
                        free_metadata,
                    )
                tl.debug_barrier()
                if enough == 0:
                    moving, after, scored = moving * 0, held, scored & False
            staged_row = ((layer * FORM.heads + h).to(tl.int64) * staging_slots + cell) * D
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
                given = staged_row + (source - held) * D
                move_to = page, into, old_page, stored, given, new, old
                place_rows(heads, staged.key_rows, move_to, FORM.pages.key_rows, FORM)
                place_rows(heads, staged.value_rows, move_to, FORM.pages.value_rows, FORM)
                if has_metadata:
                    to = flat_rows(metadata_table, target, valid, M_ROWS)
                    position, old_entry = positions_of(
                        metadata_table, metadata.positions, source, held, length, M_ROWS
                    )
                    tl.store(metadata.positions + to, position, mask=valid)
                    flag = tl.load(metadata.flags + old_entry, mask=old, other=0)
                    new_flag = tl.load(staged.flags + cell + source - held, mask=new, other=0)
                    tl.store(metadata.flags + to, flag | new_flag, mask=valid)
                    if scored:
                        grown = tl.load(grown_scores + start + source, mask=valid, other=0.0)
                        tl.store(metadata.scores + to, grown, mask=valid)
                    if FORM.weighted:
                        weight = tl.load(metadata.log_weights + old_entry, mask=old, other=0.0)
                        tl.store(metadata.log_weights + to, weight, mask=valid)
            if scored:
                # of rows that stay where they are; slots filled above are no longer theirs
                for first in range(0, tl.minimum(held, after), BLOCK_R):
                    row, at, _ = metadata_tile(metadata_table, first, held, M_ROWS, BLOCK_R)
                    here = row < tl.minimum(held, after)
                    kept = tl.load(stays + start + row, mask=here, other=0) != 0
                    grown = tl.load(grown_scores + start + row, mask=here, other=0.0)
                    tl.store(metadata.scores + at, grown, mask=here & kept)
            if FORM.takes:
                return_pages(table, tl.cdiv(held, PAGE_ROWS), tl.cdiv(after, PAGE_ROWS), free_pages)
                if has_metadata:
                    return_pages(
                        metadata_table,
                        tl.cdiv(held, M_ROWS),
                        tl.cdiv(after, M_ROWS),
                        free_metadata,
                    )
        if FORM.decides:
            tl.store(heads.rows_after + place, after)

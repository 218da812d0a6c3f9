"""Moves of rows that stay, and their encoding: device functions of the retain kernel."""

from __future__ import annotations

import triton
import triton.language as tl

from kvstore.kernels.coded_rows import INT4, MODEL, RowForm, scale_words, store_codes
from kvstore.kernels.retain.arguments import HeadRows, RetainForm


@triton.jit
def list_moves(
    stays: tl.tensor,
    moves: tl.tensor,
    held: tl.tensor,
    total: tl.tensor,
    after: tl.tensor,
    arriving: tl.tensor,
    BLOCK_R: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """List slots to fill, ascending, and rows for them: new ones, then those from `after` on.

    Return how many rows move, and how many slots are listed. If more rows move than slots were
    free, the others follow slot R − 1; if fewer, only free slots below `after` are filled.
    """
    holes, placed, tail = 0, 0, 0
    for first in range(0, total, BLOCK_R):
        row = first + tl.arange(0, BLOCK_R)
        kept = (tl.load(stays + row, mask=row < total, other=0) != 0).to(tl.int32)
        hole = (row < held).to(tl.int32) * (1 - kept)
        here = tl.sum(hole, 0)
        # most tiles have none, and nothing that moves
        if here > 0:
            tl.store(moves + 2 * (holes + tl.cumsum(hole, 0) - hole), row, mask=hole != 0)
            holes += here
        if first + BLOCK_R > tl.minimum(held, after):
            new = (row >= held).to(tl.int32) * kept
            tl.store(moves + 2 * (placed + tl.cumsum(new, 0) - new) + 1, row, mask=new != 0)
            placed += tl.sum(new, 0)
            old = ((row < held) & (row >= after)).to(tl.int32) * kept
            rank = arriving + tail + tl.cumsum(old, 0) - old
            tl.store(moves + 2 * rank + 1, row, mask=old != 0)
            tail += tl.sum(old, 0)
    tl.debug_barrier()
    return arriving + tail, holes


@triton.jit
def arriving_rows(
    stays: tl.tensor, held: tl.tensor, total: tl.tensor, BLOCK_R: tl.constexpr
) -> tl.tensor:
    """Return how many of the rows from `held` on stay."""
    arriving = 0
    for first in range(held, total, BLOCK_R):
        row = first + tl.arange(0, BLOCK_R)
        kept = tl.load(stays + row, mask=row < total, other=0) != 0
        arriving += tl.sum(kept.to(tl.int32), 0)
    return arriving


@triton.jit
def place_rows(
    heads: HeadRows, staged: tl.tensor, move: tl.tuple, row: RowForm, form: RetainForm
) -> None:
    """Write rows into their pages: old ones unchanged, new ones coded as the codec asks.

    `move` `[K]` each: page and place in it, the old page and place, the element where a staged row
    begins, and which rows are new and which are old.
    """
    page, place, old_page, old_place, given, new, old = move
    elements, arena = heads.elements, heads.arena
    CODEC: tl.constexpr = row.codec
    PAGE: tl.constexpr = row.page
    D: tl.constexpr = form.size
    BLOCK_D: tl.constexpr = form.block_d
    BLOCK_H: tl.constexpr = form.block_h
    into = page * PAGE + row.first + place * row.codes
    stored = old_page * PAGE + row.first + old_place * row.codes
    size = tl.arange(0, BLOCK_D)[None, :]
    is_new = new[:, None] & (size < D)
    if CODEC == MODEL:
        is_old = old[:, None] & (size < D)
        kept = tl.load(elements + stored[:, None] + size, mask=is_old, other=0.0)
        fresh = tl.load(staged + given[:, None] + size, mask=is_new, other=0.0)
        target = elements + into[:, None] + size
        tl.store(target, tl.where(is_new, fresh, kept), mask=is_new | is_old)
    else:
        is_old = old[:, None] & (size < row.codes)
        kept = tl.load(arena + stored[:, None] + size, mask=is_old, other=0)
        tl.store(arena + into[:, None] + size, kept, mask=is_old)
        scales = scale_words(arena, page * PAGE + row.scales) + place
        old_scales = scale_words(arena, old_page * PAGE + row.scales) + old_place
        tl.store(scales, tl.load(old_scales, mask=old, other=0), mask=old)
        if CODEC == INT4:
            HALF: tl.constexpr = (D + 1) // 2
            half = tl.arange(0, BLOCK_H)[None, :]
            low = tl.load(
                staged + given[:, None] + half, mask=new[:, None] & (half < HALF), other=0.0
            )
            high = tl.load(
                staged + given[:, None] + HALF + half,
                mask=new[:, None] & (half + HALF < D),
                other=0.0,
            )
            low, high = low.to(tl.float32), high.to(tl.float32)
            scale, offset = store_codes(arena, into, low, high, new, CODEC, D, BLOCK_H)
        else:
            fresh = tl.load(staged + given[:, None] + size, mask=is_new, other=0.0)
            exact = fresh.to(tl.float32)
            scale, offset = store_codes(arena, into, exact, exact, new, CODEC, D, BLOCK_D)
        tl.store(scales, offset | ((scale >> 16) & 0xFFFF), mask=new)

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

import dataclasses

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from kvstore.kernels.coded_rows import INT4, MODEL, page_options, store_coded
from kvstore.kernels.device_batch import DeviceBatch, DeviceScratch
from kvstore.kernels.flat_rows import flat_rows
from kvstore.kernels.paged_batch import PagedBatch, StepScratch
from kvstore.rule_table import RULE_DTYPE, SCORE_DECAYED, SCORE_SUM

_FIELDS = {name: int(at[1]) for name, at in (RULE_DTYPE.fields or {}).items()}
_RULE_WORDS = tl.constexpr(RULE_DTYPE.itemsize // 8)
_HORIZON = tl.constexpr(_FIELDS["horizon"] // 8)
_SINKS = tl.constexpr(_FIELDS["sinks"] // 8)
_WINDOW = tl.constexpr(_FIELDS["window"] // 8)
_FLOOR_ROWS = tl.constexpr(_FIELDS["floor_rows"] // 8)
_GENERATED_FROM = tl.constexpr(_FIELDS["generated_from"] // 8)
_GENERATED_WINDOW = tl.constexpr(_FIELDS["generated_window"] // 8)
_BUDGET_ROWS = tl.constexpr(_FIELDS["budget_rows"] // 8)
_BUDGET_RATIO = tl.constexpr(_FIELDS["budget_ratio"] // 8)
_SCORE_DECAY = tl.constexpr(_FIELDS["score_decay"] // 8)
# the four single bytes share a word
_BYTES = tl.constexpr(_FIELDS["full"] // 8)
_BEYOND_SHIFT = tl.constexpr(8 * (_FIELDS["budget_beyond"] % 8))
_PROTECTED_SHIFT = tl.constexpr(8 * (_FIELDS["protected"] % 8))
_UPDATE_SHIFT = tl.constexpr(8 * (_FIELDS["score_update"] % 8))
_SUM = tl.constexpr(SCORE_SUM)
_DECAYED = tl.constexpr(SCORE_DECAYED)

# batches and pools of any size share their compiled form
_VARYING = [
    "cell_count",
    "table_pages",
    "mark_pages",
    "layers",
    "heads",
    "page_capacity",
    "mark_capacity",
]
_ROW_TILE = 1024
_MOVE_TILE = 16
# up to so many rows that lose their rank are found by a scan each
_FEW = tl.constexpr(8)
# below every rank, and above every one
_LOWEST = tl.constexpr(-(2**63))
_HIGHEST = tl.constexpr(2**63 - 1)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class FreePages:
    """Pages nobody holds, a queue on the device.

    They are the entries `taken` to `returned` − 1 of `ring` int32 `[pages]`, taken round; both
    counters (int64 `[1]`) only grow. Pages given back by a launch can be taken from the next one
    on. The caller's reservations see to it that there are enough. Should they not, `exhausted`
    int32 `[1]` becomes 1, the head that asked stays as it was, and the queue is not fit for use.
    """

    ring: torch.Tensor
    taken: torch.Tensor
    returned: torch.Tensor
    exhausted: torch.Tensor

    @classmethod
    def of(cls, pages: int, free: torch.Tensor) -> FreePages:
        """A pool of so many pages, of which `free` int32 are taken first to last."""
        ring = free.new_full((pages,), -1)
        ring[: free.numel()] = free
        none = torch.zeros(1, dtype=torch.int64, device=free.device)
        return cls(ring, none, none + free.numel(), none.to(torch.int32))


def decide(batch: PagedBatch, scratch: StepScratch) -> NDArray[np.int32]:
    """See op.py. Waits for the device once, for the rows that heads will hold."""
    here = batch.on_device
    after = here.rows.clone()
    _launch(here, scratch.on_device, after, None, decides=True)
    rows_after: NDArray[np.int32] = after.cpu().numpy()
    return rows_after


def carry(batch: PagedBatch, scratch: StepScratch, rows_after: NDArray[np.int32]) -> None:
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
    _retain[(sequences * layers * heads,)](
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
        batch.mark_flags,
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
        *(nothing if free is None else _queue(free[0])),
        *(nothing if free is None else _queue(free[1])),
        **page_options(batch.store.division),
        MARK_ROWS=batch.mark_rows,
        WEIGHTED=any(batch.weighted_layers),
        DECIDES=decides,
        CARRIES=free is not None or not decides,
        TAKES=free is not None,
        D=size,
        BLOCK_D=triton.next_power_of_2(size),
        BLOCK_H=triton.next_power_of_2((size + 1) // 2),
        BLOCK_W=triton.next_power_of_2(max(coding.keys.width, coding.values.width)),
        BLOCK_R=_ROW_TILE,
        BLOCK_K=_MOVE_TILE,
        num_warps=4,
    )


def _queue(free: FreePages) -> tuple[torch.Tensor | int, ...]:
    # what is given back meanwhile cannot be taken yet
    fence = free.returned.clone()
    return free.ring, free.ring.numel(), free.taken, free.returned, fence, free.exhausted


@triton.jit
def _rank(score: tl.tensor, position: tl.tensor) -> tl.tensor:
    """Int64s in the order of scores, of equal ones the later position first; all different."""
    # −0 is as much as 0
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (2147483647 - position).to(tl.int64)


@triton.jit
def _positions_of(
    mark_table: tl.tensor,
    positions: tl.tensor,
    row: tl.tensor,
    held: tl.tensor,
    length: tl.tensor,
    MARK_ROWS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Positions of rows `[0, R + m)`, int32, and where the held ones' marks lie."""
    mark = flat_rows(mark_table, row, row < held, MARK_ROWS)
    old = tl.load(positions + mark, mask=row < held, other=0)
    return tl.where(row < held, old, (length + row - held).to(tl.int32)), mark


@triton.jit
def _last_loser(
    ranks: tl.tensor, total: tl.tensor, losers: tl.tensor, BLOCK_R: tl.constexpr
) -> tl.tensor:
    """The rank up to which exactly `losers` rows are; below all if there are none."""
    low = tl.full([], _LOWEST, tl.int64)
    if losers <= _FEW:
        found = 0
        while found < losers:
            least = tl.full([], _HIGHEST, tl.int64)
            for first in range(0, total, BLOCK_R):
                row = first + tl.arange(0, BLOCK_R)
                rank = tl.load(ranks + row, mask=row < total, other=_HIGHEST)
                least = tl.minimum(least, tl.min(tl.where(rank > low, rank, _HIGHEST), 0))
            low = least
            found += 1
    else:
        high = tl.full([], _HIGHEST, tl.int64)
        while low < high:
            # the mean, rounded down, without overflow
            middle = (low >> 1) + (high >> 1) + (low & high & 1)
            below = 0
            for first in range(0, total, BLOCK_R):
                row = first + tl.arange(0, BLOCK_R)
                rank = tl.load(ranks + row, mask=row < total, other=_HIGHEST)
                below += tl.sum((rank <= middle).to(tl.int32), 0)
            if below >= losers:
                high = middle
            else:
                low = middle + 1
    return low


@triton.jit
def _budget(rule: tl.tensor, seen: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Rows that the rule keeps by score, and whether it has scores at all."""
    full = (tl.load(rule + _BYTES) & 0xFF) != 0
    ratio = tl.load(rule + _BUDGET_RATIO).to(tl.float64, bitcast=True)
    # the margin is RATIO_ROUNDING of the rules
    share = tl.ceil(ratio * seen.to(tl.float64) - 1e-9).to(tl.int64)
    rows = tl.load(rule + _BUDGET_ROWS)
    # a share of few tokens rounds to none, and scores grow all the same
    return tl.maximum(rows, share), (full == 0) & ((rows > 0) | (ratio > 0.0))


@triton.jit
def _decide(
    rule: tl.tensor,
    mark_table: tl.tensor,
    positions: tl.tensor,
    scores: tl.tensor,
    flags: tl.tensor,
    new_flags: tl.tensor,
    grown: tl.tensor,
    stays: tl.tensor,
    ranks: tl.tensor,
    held: tl.tensor,
    fed: tl.tensor,
    length: tl.tensor,
    scored: tl.tensor,
    budget: tl.tensor,
    MARK_ROWS: tl.constexpr,
    BLOCK_R: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Write `stays` and the new scores to `grown`; how many rows stay, and how many are new.

    `length` is from before the step; `new_flags`, `grown`, `stays` and `ranks` begin at
    this head's own.
    """
    total, seen = held + fed, length + fed
    single = tl.load(rule + _BYTES)
    full = (single & 0xFF).to(tl.int32)
    beyond = ((single >> _BEYOND_SHIFT) & 0xFF).to(tl.int32)
    protected = ((single >> _PROTECTED_SHIFT) & 0xFF).to(tl.int32)
    update = ((single >> _UPDATE_SHIFT) & 0xFF).to(tl.int32)
    sinks = tl.load(rule + _SINKS)
    recent = tl.maximum(tl.load(rule + _WINDOW), tl.load(rule + _FLOOR_ROWS) - sinks)
    generated_window = tl.load(rule + _GENERATED_WINDOW)
    generated = tl.maximum(tl.load(rule + _GENERATED_FROM), seen - generated_window)
    generated = tl.where(generated_window > 0, generated, seen)
    decay = tl.full([], 1.0, tl.float64)
    if update == _DECAYED:
        once = tl.load(rule + _SCORE_DECAY).to(tl.float64, bitcast=True)
        for _ in range(fed):
            decay *= once
    adds = (update == _DECAYED) | (update == _SUM)
    clauses = 0
    for first in range(0, total, BLOCK_R):
        row = first + tl.arange(0, BLOCK_R)
        position, mark = _positions_of(mark_table, positions, row, held, length, MARK_ROWS)
        old_flag = tl.load(flags + mark, mask=row < held, other=0)
        arrives = (row >= held) & (row < total)
        new_flag = tl.load(new_flags + row - held, mask=arrives, other=0)
        protects = ((old_flag | new_flag).to(tl.int32) & protected) != 0
        kept = (position > seen - 1 - recent) | (position < sinks) | (position >= generated)
        kept = (kept | protects).to(tl.int32) | full
        kept = tl.where(row < total, kept, 0)
        clauses += tl.sum(kept, 0)
        tl.store(stays + row, kept.to(tl.uint8), mask=row < total)
        if scored:
            got = tl.load(grown + row, mask=row < total, other=0.0)
            old_score = tl.load(scores + mark, mask=row < held, other=0.0)
            got = tl.where(adds, got, 0.0) + decay.to(tl.float32) * old_score
            tl.store(grown + row, got, mask=row < total)
            # rows that do not compete for the budget rank above all that do
            rank = tl.where(kept * beyond == 0, _rank(got, position), _HIGHEST)
            tl.store(ranks + row, rank, mask=row < total)
    tl.debug_barrier()
    threshold = tl.full([], _HIGHEST, tl.int64)
    if scored:
        losers = tl.where(beyond != 0, total - clauses, total) - budget
        threshold = _last_loser(ranks, total, losers, BLOCK_R)
    horizon = tl.load(rule + _HORIZON)
    oldest = tl.where(horizon > 0, seen - horizon, 0)
    staying, arriving = 0, 0
    for first in range(0, total, BLOCK_R):
        row = first + tl.arange(0, BLOCK_R)
        position, _ = _positions_of(mark_table, positions, row, held, length, MARK_ROWS)
        kept = tl.load(stays + row, mask=row < total, other=0) != 0
        if scored:
            kept = kept | (tl.load(ranks + row, mask=row < total, other=0) > threshold)
        kept = kept & (position >= oldest) & (row < total)
        staying += tl.sum(kept.to(tl.int32), 0)
        arriving += tl.sum((kept & (row >= held)).to(tl.int32), 0)
        tl.store(stays + row, kept.to(tl.uint8), mask=row < total)
    tl.debug_barrier()
    return staying, arriving


@triton.jit
def _list_moves(
    stays: tl.tensor,
    moves: tl.tensor,
    held: tl.tensor,
    total: tl.tensor,
    after: tl.tensor,
    arriving: tl.tensor,
    BLOCK_R: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Slots to fill, ascending, and rows for them: arrivals, then those in slots from `after` on.

    How many rows move, and how many slots are listed. If rows move to more slots than were holes,
    the others follow slot R − 1; if to fewer, only holes below `after` are filled.
    """
    holes, placed, tail = 0, 0, 0
    for first in range(0, total, BLOCK_R):
        row = first + tl.arange(0, BLOCK_R)
        kept = (tl.load(stays + row, mask=row < total, other=0) != 0).to(tl.int32)
        hole = (row < held).to(tl.int32) * (1 - kept)
        tl.store(moves + 2 * (holes + tl.cumsum(hole, 0) - hole), row, mask=hole != 0)
        holes += tl.sum(hole, 0)
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
def _take_pages(
    table: tl.tensor,
    have: tl.tensor,
    need: tl.tensor,
    ring: tl.tensor,
    capacity: int,
    taken: tl.tensor,
    fence: tl.tensor,
    exhausted: tl.tensor,
) -> tl.tensor:
    """Extend a head's table to `need` pages; 1, or 0 if there are not so many."""
    enough = 1
    if need > have:
        first = tl.atomic_add(taken, (need - have).to(tl.int64))
        if first + need - have > tl.load(fence):
            tl.store(exhausted, 1)
            enough = 0
        else:
            for page in range(have, need):
                tl.store(table + page, tl.load(ring + (first + page - have) % capacity))
    return enough


@triton.jit
def _give_back_pages(
    table: tl.tensor,
    have: tl.tensor,
    need: tl.tensor,
    ring: tl.tensor,
    capacity: int,
    returned: tl.tensor,
) -> None:
    """Shorten a head's table to `need` pages."""
    if have > need:
        first = tl.atomic_add(returned, (have - need).to(tl.int64))
        for page in range(need, have):
            tl.store(ring + (first + page - need) % capacity, tl.load(table + page))


@triton.jit
def _arriving(
    stays: tl.tensor, held: tl.tensor, total: tl.tensor, BLOCK_R: tl.constexpr
) -> tl.tensor:
    """How many of the rows from `held` on stay."""
    arriving = 0
    for first in range(held, total, BLOCK_R):
        row = first + tl.arange(0, BLOCK_R)
        kept = tl.load(stays + row, mask=row < total, other=0) != 0
        arriving += tl.sum(kept.to(tl.int32), 0)
    return arriving


@triton.jit
def _place_rows(
    elements: tl.tensor,
    arena: tl.tensor,
    fed_rows: tl.tensor,
    into: tl.tensor,
    stored: tl.tensor,
    given: tl.tensor,
    new: tl.tensor,
    old: tl.tensor,
    CODEC: tl.constexpr,
    WIDTH: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
) -> None:
    """Write rows at `into`: `old` ones as they are `stored`, `new` ones coded from `given` on."""
    size = tl.arange(0, BLOCK_D)[None, :]
    is_new = new[:, None] & (size < D)
    if CODEC == MODEL:
        is_old = old[:, None] & (size < D)
        kept = tl.load(elements + stored[:, None] + size, mask=is_old, other=0.0)
        fresh = tl.load(fed_rows + given[:, None] + size, mask=is_new, other=0.0)
        target = elements + into[:, None] + size
        tl.store(target, tl.where(is_new, fresh, kept), mask=is_new | is_old)
    else:
        byte = tl.arange(0, BLOCK_W)[None, :]
        is_old = old[:, None] & (byte < WIDTH)
        kept = tl.load(arena + stored[:, None] + byte, mask=is_old, other=0)
        tl.store(arena + into[:, None] + byte, kept, mask=is_old)
        if CODEC == INT4:
            HALF: tl.constexpr = (D + 1) // 2
            half = tl.arange(0, BLOCK_H)[None, :]
            low = tl.load(
                fed_rows + given[:, None] + half, mask=new[:, None] & (half < HALF), other=0.0
            )
            high = tl.load(
                fed_rows + given[:, None] + HALF + half,
                mask=new[:, None] & (half + HALF < D),
                other=0.0,
            )
            store_coded(
                arena, into, low.to(tl.float32), high.to(tl.float32), new, CODEC, D, BLOCK_H
            )
        else:
            fresh = tl.load(fed_rows + given[:, None] + size, mask=is_new, other=0.0)
            exact = fresh.to(tl.float32)
            store_coded(arena, into, exact, exact, new, CODEC, D, BLOCK_D)


@triton.jit(do_not_specialize=_VARYING)
def _retain(
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
    mark_pages: int,
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
    KEY_WIDTH: tl.constexpr,
    VALUE_CODEC: tl.constexpr,
    VALUE_PAGE: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
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
    BLOCK_W: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Program (sequence, layer, head)."""
    entry = tl.program_id(0)
    b, layer, h = entry // (layers * heads), entry // heads % layers, entry % heads
    if h < tl.load(kv_heads + layer):
        place = entry.to(tl.int64)
        rule = rules + place * _RULE_WORDS
        table, mark_table = pages + place * table_pages, marks + place * mark_pages
        held, length = tl.load(rows + place), tl.load(lengths + b).to(tl.int64)
        fed, cell = tl.load(before + b) + tl.load(counts + b), tl.load(cells + b)
        total = held + fed
        full = (tl.load(rule + _BYTES) & 0xFF) != 0
        bounded = (full == 0) | (tl.load(rule + _HORIZON) > 0)
        budget, scored = _budget(rule, length + fed)
        start = tl.load(starts + place).to(tl.int64)
        after, arriving = total, fed
        if DECIDES:
            if bounded:
                after, arriving = _decide(
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
                arriving = _arriving(stays + start, held, total, BLOCK_R)
        if CARRIES:
            is_marked = tl.load(marked + place).to(tl.int32) != 0
            moving, listed, has_list = arriving, 0, 0
            if bounded & (after < total):
                has_list = 1
                moving, listed = _list_moves(
                    stays + start, moves + 2 * start, held, total, after, arriving, BLOCK_R
                )
            if TAKES:
                have, need = tl.cdiv(held, PAGE_ROWS), tl.cdiv(after, PAGE_ROWS)
                enough = _take_pages(
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
                    enough *= _take_pages(
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
                    source = tl.load(moves + 2 * (start + move) + 1, mask=valid, other=0)
                    hole = tl.load(moves + 2 * (start + move), mask=move < listed, other=0)
                    target = tl.where(move < listed, hole, target)
                new, old = valid & (source >= held), valid & (source < held)
                page = tl.load(table + target // PAGE_ROWS, mask=valid, other=0).to(tl.int64)
                old_page = tl.load(table + source // PAGE_ROWS, mask=old, other=0).to(tl.int64)
                into, stored = target % PAGE_ROWS, source % PAGE_ROWS
                given = fed_row + (source - held) * D
                _place_rows(
                    elements,
                    arena,
                    new_keys,
                    page * KEY_PAGE + into * KEY_WIDTH,
                    old_page * KEY_PAGE + stored * KEY_WIDTH,
                    given,
                    new,
                    old,
                    KEY_CODEC,
                    KEY_WIDTH,
                    D,
                    BLOCK_D,
                    BLOCK_H,
                    BLOCK_W,
                )
                _place_rows(
                    elements,
                    arena,
                    new_values,
                    page * VALUE_PAGE + into * VALUE_WIDTH + VALUE_FIRST,
                    old_page * VALUE_PAGE + stored * VALUE_WIDTH + VALUE_FIRST,
                    given,
                    new,
                    old,
                    VALUE_CODEC,
                    VALUE_WIDTH,
                    D,
                    BLOCK_D,
                    BLOCK_H,
                    BLOCK_W,
                )
                if is_marked:
                    to = flat_rows(mark_table, target, valid, MARK_ROWS)
                    position, mark = _positions_of(
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
                    row = first + tl.arange(0, BLOCK_R)
                    here = row < tl.minimum(held, after)
                    kept = tl.load(stays + start + row, mask=here, other=0) != 0
                    mark = flat_rows(mark_table, row, here, MARK_ROWS)
                    grown = tl.load(received + start + row, mask=here, other=0.0)
                    tl.store(scores + mark, grown, mask=here & kept)
            if TAKES:
                _give_back_pages(
                    table,
                    tl.cdiv(held, PAGE_ROWS),
                    tl.cdiv(after, PAGE_ROWS),
                    page_ring,
                    page_capacity,
                    pages_returned,
                )
                if is_marked:
                    _give_back_pages(
                        mark_table,
                        tl.cdiv(held, MARK_ROWS),
                        tl.cdiv(after, MARK_ROWS),
                        mark_ring,
                        mark_capacity,
                        marks_returned,
                    )
        if DECIDES:
            tl.store(rows_after + place, after)

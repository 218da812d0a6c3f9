"""Retention of all sequences, layers and heads on a GPU in one launch, pages included.

A program owns a head: it decides by the rule which of the R held and m fed rows stay, takes pages
from a free list on the device, writes the new rows into victims' slots or appends them, closes
what holes are left from the tail, and gives pages back. Heads share nothing but the free lists,
whose counters are the only atomics: what a head holds afterwards has the same bits each time, but
which page it lies in depends on which program asked first.

Bytes per step and head that may lose rows: `R · (4 + 1)` for positions and flags, and with a
budget `R · (4 + 4)` read and `R · (4 + 4)` written for what rows received and their scores, and
`R · 8` written for their ranks, which the passes after the first find in the second-level cache.
Each row that moves or arrives costs `4 · D` elements, one a head in a step of one token.
Operations: about 20 a row for the clauses; a budget adds a scan per row that loses its rank, up to
eight of them, else 64 counts. So the limit is the metadata's bandwidth, and a head that keeps
everything costs only its new row. 16,384 heads with budgets that hold 4,096 rows each move about
2 GB a step: more than 60 µs allow, so that target needs victims looked for in blocks of steps.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from kvstore.kernels.flat_rows import flat_rows
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


def rule_words(rules: NDArray[np.void]) -> torch.Tensor:
    """A table of `RULE_DTYPE` as the kernel reads it, int64 `[..., RULE_DTYPE.itemsize // 8]`."""
    return torch.from_numpy(rules[..., None].view(np.int64).copy())


def retain(
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    cells: torch.Tensor,
    new_flags: torch.Tensor,
    lengths: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    scores: torch.Tensor,
    flags: torch.Tensor,
    log_weights: torch.Tensor | None,
    pages: torch.Tensor,
    marks: torch.Tensor,
    rows: torch.Tensor,
    rules: torch.Tensor,
    slots: torch.Tensor,
    kv_heads: torch.Tensor,
    starts: torch.Tensor,
    received: torch.Tensor,
    stays: torch.Tensor,
    moves: torch.Tensor,
    free_pages: FreePages,
    free_marks: FreePages,
    *,
    page_rows: int,
) -> None:
    """Apply every head's rule to its R held and m fed rows; see `keep_mask` for what it says.

    Fed rows: `new_keys`, `new_values` `[L, H, C, D]` in the m cells from `cells[b]` (int32) on,
    their classes `new_flags` uint8 `[B, m]`, their positions from `lengths[b]` (int64) on. The
    pool: `keys`, `values` `[N, D]`; `positions` int32, `scores` f32, `flags` uint8 and perhaps
    `log_weights` f32, all `[M]`; `pages`, `marks` int32 `[S, L, H, P]`; `rows` int32 `[S, L, H]`,
    changed in place like all of these; `rules` from `rule_words`, `[S, L, H, ..]`. A head holds
    `ceil(R / page_rows)` pages, and as many mark pages if its rule may ever let go of a row.
    `slots` int32 `[B]` are the batch's sequences, `kv_heads` int32 `[L]` the heads that count.

    Heads that may lose rows have R + m entries from `starts[b, layer, head]` (int64 `[B, L, H]`)
    on: `received` f32 is what attention found and becomes the rows' new scores, `stays` uint8 the
    decision, `moves` int32 `[entries, 2]` scratch. Lengths are left to the caller.
    """
    sequences, layers, heads = starts.shape
    size = keys.shape[1]
    for part in (keys, values, new_keys, new_values, moves):
        assert part.is_contiguous(), "rows lie one after another"
    _retain[(sequences * layers * heads,)](
        new_keys,
        new_values,
        cells,
        new_keys.shape[2],
        new_flags,
        new_flags.shape[1],
        lengths,
        keys,
        values,
        positions,
        scores,
        flags,
        scores if log_weights is None else log_weights,
        pages,
        marks,
        pages.shape[3],
        rows,
        rules,
        slots,
        kv_heads,
        layers,
        heads,
        starts,
        received,
        stays,
        moves,
        moves.view(torch.int64),
        *_queue(free_pages),
        *_queue(free_marks),
        PAGE_ROWS=page_rows,
        WEIGHTED=log_weights is not None,
        D=size,
        BLOCK_D=triton.next_power_of_2(size),
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
    PAGE_ROWS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Positions of rows `[0, R + m)`, int32, and where the held ones' marks lie."""
    mark = flat_rows(mark_table, row, row < held, PAGE_ROWS)
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
    fed: int,
    length: tl.tensor,
    PAGE_ROWS: tl.constexpr,
    BLOCK_R: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Write `stays` and the new scores; how many rows stay, how many of them are new, and whether
    the rule has scores.

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
    ratio = tl.load(rule + _BUDGET_RATIO).to(tl.float64, bitcast=True)
    # the margin is RATIO_ROUNDING of the rules
    share = tl.ceil(ratio * seen.to(tl.float64) - 1e-9).to(tl.int64)
    budget = tl.maximum(tl.load(rule + _BUDGET_ROWS), share)
    scored = (full == 0) & (budget > 0)
    decay = tl.full([], 1.0, tl.float64)
    if update == _DECAYED:
        once = tl.load(rule + _SCORE_DECAY).to(tl.float64, bitcast=True)
        for _ in range(fed):
            decay *= once
    adds = (update == _DECAYED) | (update == _SUM)
    clauses = 0
    for first in range(0, total, BLOCK_R):
        row = first + tl.arange(0, BLOCK_R)
        position, mark = _positions_of(mark_table, positions, row, held, length, PAGE_ROWS)
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
        position, mark = _positions_of(mark_table, positions, row, held, length, PAGE_ROWS)
        kept = tl.load(stays + row, mask=row < total, other=0) != 0
        if scored:
            kept = kept | (tl.load(ranks + row, mask=row < total, other=0) > threshold)
        kept = kept & (position >= oldest) & (row < total)
        staying += tl.sum(kept.to(tl.int32), 0)
        arriving += tl.sum((kept & (row >= held)).to(tl.int32), 0)
        tl.store(stays + row, kept.to(tl.uint8), mask=row < total)
        if scored:
            score = tl.load(grown + row, mask=row < total, other=0.0)
            tl.store(scores + mark, score, mask=kept & (row < held))
    tl.debug_barrier()
    return staying, arriving, scored


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
def _retain(
    new_keys: tl.tensor,
    new_values: tl.tensor,
    cells: tl.tensor,
    cell_count: int,
    new_flags: tl.tensor,
    fed: int,
    lengths: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    positions: tl.tensor,
    scores: tl.tensor,
    flags: tl.tensor,
    log_weights: tl.tensor,
    pages: tl.tensor,
    marks: tl.tensor,
    table_pages: int,
    rows: tl.tensor,
    rules: tl.tensor,
    slots: tl.tensor,
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
    PAGE_ROWS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Program (sequence, layer, head)."""
    entry = tl.program_id(0)
    b, layer, h = entry // (layers * heads), entry // heads % layers, entry % heads
    if h < tl.load(kv_heads + layer):
        place = (tl.load(slots + b).to(tl.int64) * layers + layer) * heads + h
        rule = rules + place * _RULE_WORDS
        table, mark_table = pages + place * table_pages, marks + place * table_pages
        held, length = tl.load(rows + place), tl.load(lengths + b).to(tl.int64)
        full = (tl.load(rule + _BYTES) & 0xFF) != 0
        bounded = (full == 0) | (tl.load(rule + _HORIZON) > 0)
        start = tl.load(starts + entry).to(tl.int64)
        after, arriving, moving, listed = held + fed, fed + 0, fed + 0, 0
        has_list, scored = 0, full & False
        if bounded:
            after, arriving, scored = _decide(
                rule,
                mark_table,
                positions,
                scores,
                flags,
                new_flags + b * fed,
                received + start,
                stays + start,
                ranks + start,
                held,
                fed,
                length,
                PAGE_ROWS,
                BLOCK_R,
            )
            moving = arriving
            if after < held + fed:
                has_list = 1
                moving, listed = _list_moves(
                    stays + start,
                    moves + 2 * start,
                    held,
                    held + fed,
                    after,
                    arriving,
                    BLOCK_R,
                )
        have, need = tl.cdiv(held, PAGE_ROWS), tl.cdiv(after, PAGE_ROWS)
        enough = _take_pages(
            table, have, need, page_ring, page_capacity, pages_taken, page_fence, pages_exhausted
        )
        if bounded:
            enough *= _take_pages(
                mark_table,
                have,
                need,
                mark_ring,
                mark_capacity,
                marks_taken,
                mark_fence,
                marks_exhausted,
            )
        tl.debug_barrier()
        if enough == 0:
            moving, after, need = moving * 0, held, have
        size = tl.arange(0, BLOCK_D)[None, :]
        cell = (layer * heads + h).to(tl.int64) * cell_count + tl.load(cells + b)
        for first in range(0, moving, BLOCK_K):
            move = first + tl.arange(0, BLOCK_K)
            valid = move < moving
            source, target = held + move, held + move - listed
            if has_list != 0:
                source = tl.load(moves + 2 * (start + move) + 1, mask=valid, other=0)
                hole = tl.load(moves + 2 * (start + move), mask=move < listed, other=0)
                target = tl.where(move < listed, hole, target)
            new, old = valid & (source >= held), valid & (source < held)
            into = flat_rows(table, target, valid, PAGE_ROWS)[:, None] * D + size
            stored = flat_rows(table, source, old, PAGE_ROWS)[:, None] * D + size
            given = (cell + source - held)[:, None] * D + size
            is_new, is_old = new[:, None] & (size < D), old[:, None] & (size < D)
            key = tl.load(keys + stored, mask=is_old, other=0.0)
            new_key = tl.load(new_keys + given, mask=is_new, other=0.0)
            tl.store(keys + into, tl.where(is_new, new_key, key), mask=is_new | is_old)
            value = tl.load(values + stored, mask=is_old, other=0.0)
            new_value = tl.load(new_values + given, mask=is_new, other=0.0)
            tl.store(values + into, tl.where(is_new, new_value, value), mask=is_new | is_old)
            if bounded:
                to = flat_rows(mark_table, target, valid, PAGE_ROWS)
                position, mark = _positions_of(
                    mark_table, positions, source, held, length, PAGE_ROWS
                )
                tl.store(positions + to, position, mask=valid)
                flag = tl.load(flags + mark, mask=old, other=0)
                new_flag = tl.load(new_flags + b * fed + source - held, mask=new, other=0)
                tl.store(flags + to, flag | new_flag, mask=valid)
                if scored:
                    grown = tl.load(received + start + source, mask=valid, other=0.0)
                    tl.store(scores + to, grown, mask=valid)
                if WEIGHTED:
                    weight = tl.load(log_weights + mark, mask=old, other=0.0)
                    tl.store(log_weights + to, weight, mask=valid)
        _give_back_pages(table, have, need, page_ring, page_capacity, pages_returned)
        if bounded:
            _give_back_pages(mark_table, have, need, mark_ring, mark_capacity, marks_returned)
        tl.store(rows + place, after)

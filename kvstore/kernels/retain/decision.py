"""Which rows of a head stay, by its rule's words: device functions of the retain kernel."""

from __future__ import annotations

import triton
import triton.language as tl

from kvstore.kernels.flat_rows import flat_rows
from kvstore.rule_table import RULE_DTYPE, SCORE_DECAYED, SCORE_SUM

_FIELDS = {name: int(at[1]) for name, at in (RULE_DTYPE.fields or {}).items()}
RULE_WORDS = tl.constexpr(RULE_DTYPE.itemsize // 8)
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
# up to so many rows that lose their rank are found one by one
_FEW = tl.constexpr(16)
# below every rank, and above every one
_LOWEST = tl.constexpr(-(2**63))
_HIGHEST = tl.constexpr(2**63 - 1)


@triton.jit
def _rank(score: tl.tensor, position: tl.tensor) -> tl.tensor:
    """Int64s in the order of scores, of equal ones the later position first; all different."""
    # −0 is as much as 0
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (2147483647 - position).to(tl.int64)


@triton.jit
def positions_of(
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
def last_loser(
    ranks: tl.tensor, total: tl.tensor, losers: tl.tensor, BLOCK_R: tl.constexpr
) -> tl.tensor:
    """The rank up to which exactly `losers` rows are; below all if there are none."""
    low = tl.full([], _LOWEST, tl.int64)
    if (losers <= _FEW) & (total <= 2 * BLOCK_R):
        # read once: of many rows it is the waiting for them that takes long
        row = tl.arange(0, 2 * BLOCK_R)
        rank = tl.load(ranks + row, mask=row < total, other=_HIGHEST)
        for _ in range(losers):
            low = tl.min(tl.where(rank > low, rank, _HIGHEST), 0)
    elif losers <= _FEW:
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
def may_lose(rule: tl.tensor) -> tl.tensor:
    """Whether the rule ever lets a row go."""
    full = (tl.load(rule + _BYTES) & 0xFF) != 0
    return (full == 0) | (tl.load(rule + _HORIZON) > 0)


@triton.jit
def budget_of(rule: tl.tensor, seen: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Rows that the rule keeps by score, and whether it has scores at all."""
    full = (tl.load(rule + _BYTES) & 0xFF) != 0
    ratio = tl.load(rule + _BUDGET_RATIO).to(tl.float64, bitcast=True)
    # the margin is RATIO_ROUNDING of the rules
    share = tl.ceil(ratio * seen.to(tl.float64) - 1e-9).to(tl.int64)
    rows = tl.load(rule + _BUDGET_ROWS)
    # a share of few tokens rounds to none, and scores grow all the same
    return tl.maximum(rows, share), (full == 0) & ((rows > 0) | (ratio > 0.0))


@triton.jit
def decide_rows(
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
        position, mark = positions_of(mark_table, positions, row, held, length, MARK_ROWS)
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
        threshold = last_loser(ranks, total, losers, BLOCK_R)
    horizon = tl.load(rule + _HORIZON)
    oldest = tl.where(horizon > 0, seen - horizon, 0)
    staying, arriving = 0, 0
    for first in range(0, total, BLOCK_R):
        row = first + tl.arange(0, BLOCK_R)
        position, _ = positions_of(mark_table, positions, row, held, length, MARK_ROWS)
        kept = tl.load(stays + row, mask=row < total, other=0) != 0
        if scored:
            kept = kept | (tl.load(ranks + row, mask=row < total, other=0) > threshold)
        kept = kept & (position >= oldest) & (row < total)
        staying += tl.sum(kept.to(tl.int32), 0)
        arriving += tl.sum((kept & (row >= held)).to(tl.int32), 0)
        tl.store(stays + row, kept.to(tl.uint8), mask=row < total)
    tl.debug_barrier()
    return staying, arriving

"""The decision by a rule about the rows of a head: device functions of the retain kernel."""

from __future__ import annotations

import triton
import triton.language as tl

from kvstore.kernels.flat_rows import flat_rows
from kvstore.kernels.retain.arguments import HeadMetadata, RetainForm
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
_LATEST = tl.constexpr(2**31 - 1)
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
def _position(bound: tl.tensor) -> tl.tensor:
    """A bound of positions, int64, as positions are: int32."""
    return tl.minimum(tl.maximum(bound, -1), _LATEST).to(tl.int32)


@triton.jit
def positions_of(
    metadata_table: tl.tensor,
    positions: tl.tensor,
    row: tl.tensor,
    held: tl.tensor,
    length: tl.tensor,
    METADATA_ROWS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return positions of rows `[0, R + m)`, int32, and where the held rows' metadata lies."""
    entry = flat_rows(metadata_table, row, row < held, METADATA_ROWS)
    old = tl.load(positions + entry, mask=row < held, other=0)
    return tl.where(row < held, old, (length + row - held).to(tl.int32)), entry


@triton.jit
def metadata_tile(
    metadata_table: tl.tensor,
    first: tl.tensor,
    held: tl.tensor,
    METADATA_ROWS: tl.constexpr,
    BLOCK_R: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return a tile's rows `[BLOCK_R / n, n]`, where their metadata lies, and what can be read.

    The metadata of n rows lies side by side, so that one load takes it all. The last n may be more
    than the held rows.
    """
    SIDE: tl.constexpr = 4 if METADATA_ROWS % 4 == 0 else 1
    begin, side = first + tl.arange(0, BLOCK_R // SIDE) * SIDE, tl.arange(0, SIDE)[None, :]
    entry = flat_rows(metadata_table, begin, begin < held, METADATA_ROWS)
    row = begin[:, None] + side
    return row, entry[:, None] + side, tl.broadcast_to((begin < held)[:, None], row.shape)


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
    metadata_table: tl.tensor,
    metadata: HeadMetadata,
    staged_flags: tl.tensor,
    entries: tl.tuple,
    held: tl.tensor,
    new_tokens: tl.tensor,
    length: tl.tensor,
    scored: tl.tensor,
    budget: tl.tensor,
    form: RetainForm,
) -> tuple[tl.tensor, tl.tensor]:
    """Decide by the rule; return how many rows stay, and how many of these are new.

    `entries` are new scores, decisions and ranks from this head's first on; the first two are
    written. `length` is from before the step; `staged_flags` begin at this head's own.
    """
    METADATA_ROWS: tl.constexpr = form.metadata_page_rows
    BLOCK_R: tl.constexpr = form.block_r
    grown, stays, ranks = entries
    total, seen = held + new_tokens, length + new_tokens
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
    horizon = tl.load(rule + _HORIZON)
    # rows at positions before the one and from the other on stay, and of these those from `oldest`
    early, late = _position(sinks), _position(tl.minimum(seen - recent, generated))
    early = tl.where(full != 0, _LATEST, early)
    oldest = _position(tl.where(horizon > 0, seen - horizon, 0))
    decay = tl.full([], 1.0, tl.float64)
    if update == _DECAYED:
        once = tl.load(rule + _SCORE_DECAY).to(tl.float64, bitcast=True)
        for _ in range(new_tokens):
            decay *= once
    adds = (update == _DECAYED) | (update == _SUM)
    new_from = (length - held).to(tl.int32)
    clauses, staying, arriving = 0, 0, 0
    for first in range(0, total, BLOCK_R):
        row, entry, there = metadata_tile(metadata_table, first, held, METADATA_ROWS, BLOCK_R)
        old, valid = row < held, row < total
        position = tl.load(metadata.positions + entry, mask=there, other=0)
        position = tl.where(old, position, new_from + row)
        flag = tl.load(metadata.flags + entry, mask=there, other=0)
        if first + BLOCK_R > held:
            flag = tl.where(
                old, flag, tl.load(staged_flags + row - held, mask=~old & valid, other=0)
            )
        protects = (flag.to(tl.int32) & protected) != 0
        kept = ((position >= late) | (position < early) | protects) & valid
        inside = position >= oldest
        if scored:
            clauses += tl.sum(kept.to(tl.int32))
            got = tl.load(grown + row, mask=valid, other=0.0)
            old_score = tl.where(old, tl.load(metadata.scores + entry, mask=there, other=0.0), 0.0)
            got = tl.where(adds, got, 0.0) + decay.to(tl.float32) * old_score
            tl.store(grown + row, got, mask=valid)
            # rows that do not compete for the budget rank above all that do
            competes = ~kept | (beyond == 0)
            tl.store(ranks + row, tl.where(competes, _rank(got, position), _HIGHEST), mask=valid)
            tl.store(stays + row, kept.to(tl.uint8) + 2 * inside.to(tl.uint8), mask=valid)
        else:
            kept = kept & inside
            staying += tl.sum(kept.to(tl.int32))
            if first + BLOCK_R > held:
                arriving += tl.sum((kept & ~old).to(tl.int32))
            tl.store(stays + row, kept.to(tl.uint8), mask=valid)
    tl.debug_barrier()
    if scored:
        losers = tl.where(beyond != 0, total - clauses, total) - budget
        threshold = last_loser(ranks, total, losers, BLOCK_R)
        for first in range(0, total, BLOCK_R):
            row = first + tl.arange(0, BLOCK_R)
            clause = tl.load(stays + row, mask=row < total, other=0)
            rank = tl.load(ranks + row, mask=row < total, other=_LOWEST)
            kept = (((clause & 1) != 0) | (rank > threshold)) & (clause > 1)
            staying += tl.sum(kept.to(tl.int32), 0)
            if first + BLOCK_R > held:
                arriving += tl.sum((kept & (row >= held)).to(tl.int32), 0)
            tl.store(stays + row, kept.to(tl.uint8), mask=row < total)
        tl.debug_barrier()
    return staying, arriving

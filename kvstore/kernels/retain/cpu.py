"""Retention of all sequences, layers and heads in two parallel passes, f32 on CPU."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numba import prange
from numpy.typing import NDArray

from kvstore.kernels.head_tables import HeadTables
from kvstore.kernels.host_arrays import (
    EncodedTokenArrays,
    EntryArrays,
    MetadataArrays,
    RowArrays,
    TokenArrays,
)
from kvstore.kernels.paged_batch import PagedBatch
from kvstore.kernels.row_pages import SCALE_WORD_BYTES, PageLayout
from kvstore.kernels.step_scratch import StepScratch
from kvstore.kernels.threads import ONLY_PRANGE, match_torch_threads
from kvstore.rule_table import SCORE_DECAYED, SCORE_SUM
from kvstore.rules import RATIO_ROUNDING

# kernels of one file: numba's cache on disk sees no change in another's functions.
# arrays inside them; numba has no static types to offer
_Array = Any

# up to so many rows that lose their rank are found by a scan each: one or two in nearly every step
_FEW = 4


def decide(batch: PagedBatch, scratch: StepScratch) -> NDArray[np.int32]:
    """Decide as op.py defines."""
    host, rows_after = batch.on_host, batch.rows
    match_torch_threads(rows_after.size)
    _decide(host.metadata, host.tables, host.tokens, scratch.on_host, rows_after)
    return rows_after


def apply_decision(batch: PagedBatch, scratch: StepScratch, rows_after: NDArray[np.int32]) -> None:
    """Apply a decision as op.py defines."""
    match_torch_threads(rows_after.size)
    host = batch.on_host
    _apply(
        host.rows,
        _parts(batch.row_pages.page_layout),
        host.metadata,
        host.tables,
        host.tokens,
        batch.arriving().on_host(),
        scratch.on_host,
        rows_after,
    )


@numba.njit(parallel=ONLY_PRANGE, cache=True, nogil=True)
def _decide(
    metadata: MetadataArrays,
    tables: HeadTables,
    tokens: TokenArrays,
    entries: EntryArrays,
    rows_after: _Array,
) -> None:
    page_rows = metadata.page_rows
    sequences, layers, heads = rows_after.shape
    for place in prange(sequences * layers * heads):
        b, layer, h = place // (layers * heads), place // heads % layers, place % heads
        if h < tables.kv_heads[layer]:
            s, new_tokens = tokens.slots[b], tokens.chunk_tokens[b]
            total, start = tables.rows[s, layer, h] + new_tokens, entries.starts[b, layer, h]
            rows_after[b, layer, h] = total
            if start >= 0:
                pages = tables.metadata[s, layer, h]
                positions = np.empty(total, np.int32)
                flags = np.empty(total, np.uint8)
                _gather(metadata, pages, positions, flags, new_tokens)
                for n in range(new_tokens):
                    positions[total - new_tokens + n] = tables.lengths[s] + n
                    flags[total - new_tokens + n] = tokens.flags[tokens.staging_slots[b] + n]
                kept = entries.stays[start : start + total]
                rule, length = tables.rules[s, layer, h], tables.lengths[s] + new_tokens
                _keep_by_clauses(rule, positions, flags, length, kept)
                if entries.scored[b, layer, h]:
                    grown = entries.row_attention[start : start + total]
                    _grow(rule, metadata.scores, page_rows, pages, grown, new_tokens)
                    _keep_highest(rule, positions, grown, length, kept)
                if rule.horizon > 0:
                    for n in range(total):
                        kept[n] &= positions[n] > length - 1 - rule.horizon
                rows_after[b, layer, h] = kept.sum()


@numba.njit(cache=True, nogil=True)
def _gather(
    metadata: MetadataArrays,
    pages: _Array,
    positions: _Array,
    flags: _Array,
    new_tokens: int,
) -> None:
    """A head's metadata in slot order; the last `new_tokens` entries are left for the new rows."""
    page_rows = metadata.page_rows
    held = len(positions) - new_tokens
    for first in range(0, held, page_rows):
        row, count = pages[first // page_rows] * page_rows, min(page_rows, held - first)
        positions[first : first + count] = metadata.positions[row : row + count]
        flags[first : first + count] = metadata.flags[row : row + count]


@numba.njit(cache=True, nogil=True)
def _grow(
    rule: Any, scores: _Array, page_rows: int, pages: _Array, grown: _Array, new_tokens: int
) -> None:
    """Turn what each row received into its new score."""
    held = len(grown) - new_tokens
    adds = rule.score_update == SCORE_SUM or rule.score_update == SCORE_DECAYED
    decay = np.float32(rule.score_decay**new_tokens if rule.score_update == SCORE_DECAYED else 1.0)
    if not adds:
        grown[:] = np.float32(0.0)
    for first in range(0, held, page_rows):
        row, count = pages[first // page_rows] * page_rows, min(page_rows, held - first)
        some, old = grown[first : first + count], scores[row : row + count]
        # one index from 0 alone: only so does the compiler make vectors of the loop
        for n in range(count):
            some[n] += decay * old[n]


@numba.njit(cache=True, nogil=True)
def _keep_by_clauses(
    rule: Any, positions: _Array, flags: _Array, length: int, kept: _Array
) -> None:
    recent = length - 1 - max(rule.window, rule.floor_rows - rule.sinks)
    generated = length
    if rule.generated_window > 0:
        generated = max(rule.generated_from, length - rule.generated_window)
    full, sinks, protected = rule.full, rule.sinks, rule.protected
    for n in range(len(kept)):
        p = positions[n]
        by_place = (p > recent) | (p < sinks) | (p >= generated)
        kept[n] = full | by_place | ((flags[n] & protected) != 0)


@numba.njit(cache=True, nogil=True)
def _keep_highest(rule: Any, positions: _Array, scores: _Array, length: int, kept: _Array) -> None:
    """Also keep the budget's rows of highest score; of equal scores the earlier position wins."""
    share = math.ceil(rule.budget_ratio * length - RATIO_ROUNDING)
    budget = max(rule.budget_rows, np.int64(share))
    if budget <= 0:
        return
    # rows that do not compete rank above all that do
    candidates = np.empty(len(scores), np.float32)
    losers = -budget
    for n in range(len(scores)):
        competes = not (rule.budget_beyond and kept[n])
        candidates[n] = scores[n] if competes else np.float32(np.inf)
        losers += competes
    if losers <= 0:
        kept[:] = True
    elif losers <= _FEW:
        _lose_lowest(candidates, positions, losers, kept)
    else:
        _keep_above(candidates, positions, losers, kept)


@numba.njit(fastmath={"nnan", "nsz"}, cache=True, nogil=True)
def _lose_lowest(scores: _Array, positions: _Array, losers: int, kept: _Array) -> None:
    """Keep all but the lowest `losers` rows, whose fate stays what it is, by a scan for each."""
    lost = np.empty(losers, np.int64)
    for found in range(losers):
        lowest = scores[0]
        for n in range(len(scores)):
            lowest = min(lowest, scores[n])
        latest = -1
        for n in range(len(scores)):
            if scores[n] == lowest and (latest < 0 or positions[n] > positions[latest]):
                latest = n
        lost[found] = latest
        scores[latest] = np.float32(np.inf)
    fates = kept[lost]
    kept[:] = True
    for found in range(losers):
        kept[lost[found]] = fates[found]


@numba.njit(cache=True, nogil=True)
def _keep_above(scores: _Array, positions: _Array, losers: int, kept: _Array) -> None:
    """Keep all but the lowest `losers` rows, whose fate stays what it is, by a partition."""
    threshold = np.partition(scores, losers)[losers]
    tied = np.sort(positions[scores == threshold])
    below = (scores < threshold).sum()
    last = tied[len(tied) - 1 - (losers - below)]
    for n in range(len(scores)):
        if scores[n] > threshold or (scores[n] == threshold and positions[n] <= last):
            kept[n] = True


def _parts(page_layout: PageLayout) -> NDArray[np.int64]:
    """Return the parts of a page's rows, int64 `[n, 5]`: codes and scales of keys and of values.

    Columns: whether the part is of values, first byte and bytes of a row, where the part begins in
    a page, and bytes from one row to the next.
    """
    parts = []
    for of_values, layout, first, scales in (
        (0, page_layout.layout.keys, 0, page_layout.key_scales),
        (1, page_layout.layout.values, page_layout.value_offset, page_layout.value_scales),
    ):
        codes, word = layout.code_bytes, layout.row_bytes - layout.code_bytes
        parts.append((of_values, 0, codes, first, codes))
        if word:
            parts.append((of_values, codes, word, scales, SCALE_WORD_BYTES))
    return np.array(parts, np.int64)


@numba.njit(parallel=ONLY_PRANGE, cache=True, nogil=True)
def _apply(
    stored: RowArrays,
    parts: _Array,
    metadata: MetadataArrays,
    tables: HeadTables,
    tokens: TokenArrays,
    encoded: EncodedTokenArrays,
    entries: EntryArrays,
    rows_after: _Array,
) -> None:
    arena, row_page_rows, page_rows = stored.arena, stored.page_rows, metadata.page_rows
    page_bytes = stored.key_places[2]
    positions, scores, flags = metadata.positions, metadata.scores, metadata.flags
    log_weights, stays, row_attention = metadata.log_weights, entries.stays, entries.row_attention
    sequences, layers, heads = rows_after.shape
    always = np.ones(tokens.chunk_tokens.max(), np.bool_)
    for place in prange(sequences * layers * heads):
        b, layer, h = place // (layers * heads), place // heads % layers, place % heads
        if h < tables.kv_heads[layer]:
            s, new_tokens = tokens.slots[b], tokens.chunk_tokens[b]
            held, after = tables.rows[s, layer, h], rows_after[b, layer, h]
            table, mark_table = tables.pages[s, layer, h], tables.metadata[s, layer, h]
            has_weights = tables.weighted[s, layer, h]
            has_scores, start = entries.scored[b, layer, h], entries.starts[b, layer, h]
            staying = stays[start : start + held] if start >= 0 else stays[:0]
            arriving = (
                stays[start + held : start + held + new_tokens]
                if start >= 0
                else always[:new_tokens]
            )
            grown = (
                row_attention[start : start + held + new_tokens]
                if has_scores
                else row_attention[:0]
            )
            if has_scores:
                _write_scores(scores, page_rows, mark_table, grown[:held])
            hole = _next_hole(staying, 0)
            end = held
            for n in range(new_tokens):
                if arriving[n]:
                    refills = hole < len(staying)
                    slot = hole if refills else end
                    new_row = encoded.staging_slots[b] + n
                    page = table[slot // row_page_rows] * page_bytes
                    for part in parts:
                        begin, end_byte = part[1], part[1] + part[2]
                        new_rows = encoded.values if part[0] else encoded.keys
                        at = page + part[3] + slot % row_page_rows * part[4]
                        arena[at : at + part[2]] = new_rows[layer, h, new_row, begin:end_byte]
                    if tables.has_metadata[s, layer, h]:
                        mark = _row(mark_table, slot, page_rows)
                        positions[mark] = tables.lengths[s] + n
                        flags[mark] = tokens.flags[tokens.staging_slots[b] + n]
                        scores[mark] = grown[held + n] if has_scores else np.float32(0.0)
                    if has_weights:
                        log_weights[_row(mark_table, slot, page_rows)] = np.float32(0.0)
                    hole = _next_hole(staying, hole + 1) if refills else hole
                    end += not refills
            for part in parts:
                _close_row_holes(
                    arena, table, row_page_rows, page_bytes, part, staying, after, hole
                )
            _close_holes(positions, mark_table, page_rows, staying, after, hole)
            _close_holes(flags, mark_table, page_rows, staying, after, hole)
            _close_holes(scores, mark_table, page_rows, staying, after, hole)
            if has_weights:
                _close_holes(log_weights, mark_table, page_rows, staying, after, hole)


@numba.njit(cache=True, nogil=True)
def _close_row_holes(
    arena: _Array,
    pages: _Array,
    page_rows: int,
    page_bytes: int,
    part: _Array,
    staying: _Array,
    after: int,
    hole: int,
) -> None:
    """`_close_holes` for one of the `parts` in which rows lie."""
    used, first, stride = part[2], part[3], part[4]
    old = after
    while hole < min(after, len(staying)):
        while not staying[old]:
            old += 1
        to = pages[hole // page_rows] * page_bytes + first + hole % page_rows * stride
        at = pages[old // page_rows] * page_bytes + first + old % page_rows * stride
        arena[to : to + used] = arena[at : at + used]
        old += 1
        hole = _next_hole(staying, hole + 1)


@numba.njit(cache=True, nogil=True)
def _close_holes(
    column: _Array, pages: _Array, page_rows: int, staying: _Array, after: int, hole: int
) -> None:
    """Fill the holes from `hole` on that lie below `after` with what stays at or beyond it."""
    old = after
    while hole < min(after, len(staying)):
        while not staying[old]:
            old += 1
        column[_row(pages, hole, page_rows)] = column[_row(pages, old, page_rows)]
        old += 1
        hole = _next_hole(staying, hole + 1)


@numba.njit(cache=True, nogil=True)
def _row(pages: _Array, slot: int, page_rows: int) -> int:
    """The flat row of a slot."""
    row: int = pages[slot // page_rows] * page_rows + slot % page_rows
    return row


@numba.njit(cache=True, nogil=True)
def _next_hole(staying: _Array, slot: int) -> int:
    """The first slot from `slot` on whose row goes; the number of slots if none."""
    while slot < len(staying) and staying[slot]:
        slot += 1
    return slot


@numba.njit(cache=True, nogil=True)
def _write_scores(scores: _Array, page_rows: int, pages: _Array, grown: _Array) -> None:
    """Write the scores of held rows. Scores of dropped rows are overwritten or never read again."""
    for first in range(0, len(grown), page_rows):
        row, count = pages[first // page_rows] * page_rows, min(page_rows, len(grown) - first)
        scores[row : row + count] = grown[first : first + count]

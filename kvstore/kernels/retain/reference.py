"""Retention in plain torch, one KV head at a time."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from kvstore.kernels.paged_batch import PagedBatch
from kvstore.kernels.row_pages import RowIndex
from kvstore.kernels.staged_rows import ArrivingRows
from kvstore.kernels.step_scratch import StepScratch
from kvstore.retention import keep_mask
from kvstore.rule_table import rule_from_record
from kvstore.rules import RetentionRule, ScoreUpdate

_Place = tuple[int, int, int]


def decide(batch: PagedBatch, scratch: StepScratch) -> NDArray[np.int32]:
    """Decide as op.py defines."""
    rows_after = batch.rows
    for place in _heads(batch):
        total, start = (
            int(rows_after[place] + batch.chunk_tokens[place[0]]),
            int(scratch.starts[place]),
        )
        if start < 0:
            rows_after[place] = total
            continue
        stays = _stays(batch, scratch, place)
        scratch.stays[start : start + total] = stays
        rows_after[place] = int(stays.sum())
    return rows_after


def apply_decision(batch: PagedBatch, scratch: StepScratch, rows_after: NDArray[np.int32]) -> None:
    """Apply a decision as op.py defines."""
    held_rows, arriving = batch.rows, batch.arriving()
    for place in _heads(batch):
        held, start = int(held_rows[place]), int(scratch.starts[place])
        block = int(batch.chunk_tokens[place[0]])
        gone = np.flatnonzero(~scratch.stays_of(place)).tolist() if start >= 0 else []
        moves = refill(held, block, gone)
        assert moves.rows == rows_after[place], "what was decided is carried out"
        _carry_rows(batch, arriving, place, moves)
        if batch.tables.has_metadata[batch.slots[place[0]], *place[1:]]:
            _carry_marks(batch, place, moves)
        if scratch.scored[place]:
            scores = scratch.row_attention[start : start + held + block]
            metadata = _metadata(batch, place, range(moves.rows))
            batch.columns.scores[metadata] = scores[moves.origins(held)]


def _heads(batch: PagedBatch) -> Iterator[_Place]:
    layers = len(batch.tables.kv_heads)
    for sequence, layer in itertools.product(range(len(batch.slots)), range(layers)):
        for head in range(batch.tables.kv_heads[layer]):
            yield sequence, layer, head


def _stays(batch: PagedBatch, scratch: StepScratch, place: _Place) -> torch.Tensor:
    """Return the rows of a head that its rule keeps, bool `[R + m]`, and write the new scores."""
    slot, tables, columns = batch.slots[place[0]], batch.tables, batch.columns
    rule = rule_from_record(tables.rules[slot, *place[1:]])
    held, new_tokens = int(tables.rows[slot, *place[1:]]), int(batch.chunk_tokens[place[0]])
    length, cell = int(tables.lengths[slot]), int(batch.staging_slots[place[0]])
    metadata = _metadata(batch, place, range(held))
    own = torch.arange(length, length + new_tokens, dtype=torch.int32, device=metadata.device)
    scores = None
    if rule.needs_scores:
        entries = slice(int(scratch.starts[place]), int(scratch.starts[place]) + held + new_tokens)
        scores = grown_scores(rule, columns.scores[metadata], scratch.row_attention[entries])
        scratch.row_attention[entries] = scores
    new_flags = torch.from_numpy(batch.staged.flags[cell : cell + new_tokens]).to(metadata.device)
    return keep_mask(
        rule,
        torch.cat((columns.positions[metadata], own)),
        scores,
        torch.cat((columns.flags[metadata], new_flags)),
        length + new_tokens,
    )


def _metadata(batch: PagedBatch, place: _Place, slots: Sequence[int]) -> torch.Tensor:
    """Return flat rows of a head's metadata, int64."""
    pages = batch.tables.metadata[batch.slots[place[0]], *place[1:]]
    rows = batch.columns.flat(pages, np.array(slots, np.int64))
    return torch.from_numpy(rows).to(batch.columns.positions.device)


def _rows(batch: PagedBatch, place: _Place, slots: Sequence[int]) -> RowIndex:
    """Return the row index of a head's slots."""
    pages = batch.tables.pages[batch.slots[place[0]], *place[1:]]
    return batch.row_pages.index(pages, np.array(slots, np.int64))


def grown_scores(
    rule: RetentionRule, held: torch.Tensor, row_attention: torch.Tensor
) -> torch.Tensor:
    """Held and new rows' scores after the block, f32 `[R + m]`."""
    new_tokens = len(row_attention) - len(held)
    if rule.score_update is ScoreUpdate.NONE:
        return torch.cat((held, held.new_zeros(new_tokens)))
    decay = rule.score_decay**new_tokens if rule.score_update is ScoreUpdate.DECAYED else 1.0
    scores = row_attention.clone()
    scores[: len(held)].add_(held, alpha=decay)
    return scores


@dataclasses.dataclass(frozen=True, slots=True)
class RetainMoves:
    """Changes of a head's slots, as data. A row that stays below the new count does not move.

    `placed`: (slot, new row) pairs, first into victims' slots in ascending order, then appended.
    `moved`: (slot, old slot) pairs that fill the holes still open from the tail; every old slot
    is at or beyond `rows`. `rows`: slots in use afterwards, 0 to `rows` − 1.
    No slot is written twice, and no old slot is written at all, so the order of carrying the
    pairs out does not matter.
    """

    placed: tuple[tuple[int, int], ...]
    moved: tuple[tuple[int, int], ...]
    rows: int

    def origins(self, held: int) -> list[int]:
        """Return for each slot the row of `[0, held + m)` that it contains afterwards."""
        origins = list(range(self.rows))
        for slot, new in self.placed:
            origins[slot] = held + new
        for slot, old in self.moved:
            origins[slot] = old
        return origins


def refill(held: int, new_tokens: int, gone: list[int]) -> RetainMoves:
    """Fill the slots of the victims; `gone` are the rows of `[0, held + new_tokens)` that leave."""
    leaving = set(gone)
    holes = [row for row in gone if row < held]
    survivors = [new for new in range(new_tokens) if held + new not in leaving]
    filled = min(len(holes), len(survivors))
    placed = list(zip(holes[:filled], survivors[:filled], strict=True))
    placed += [(held + n, new) for n, new in enumerate(survivors[filled:])]
    rows = held - len(holes) + len(survivors)
    open_holes = [hole for hole in holes[filled:] if hole < rows]
    # holes are refilled in ascending order, so no refilled one lies in the tail
    tail = [row for row in range(rows, held) if row not in leaving]
    return RetainMoves(tuple(placed), tuple(zip(open_holes, tail, strict=True)), rows)


def _carry_rows(
    batch: PagedBatch, arriving: ArrivingRows, place: _Place, moves: RetainMoves
) -> None:
    row_pages, (_, layer, head) = batch.row_pages, place
    for slots, old in _pairs(moves.moved):
        targets, sources = (_rows(batch, place, some) for some in (slots, old))
        for held in (row_pages.keys, row_pages.values):
            held[targets] = held[sources]
    for slots, new in _pairs(moves.placed):
        rows = _rows(batch, place, slots)
        staging_slots = torch.tensor(new) + int(arriving.staging_slots[place[0]])
        row_pages.keys[rows] = arriving.keys[layer, head, staging_slots]
        row_pages.values[rows] = arriving.values[layer, head, staging_slots]


def _carry_marks(batch: PagedBatch, place: _Place, moves: RetainMoves) -> None:
    columns, slot = batch.columns, batch.slots[place[0]]
    weighted = batch.tables.weighted[slot, *place[1:]]
    for slots, old in _pairs(moves.moved):
        targets, sources = (_metadata(batch, place, some) for some in (slots, old))
        weights = (columns.log_weights,) if weighted else ()
        for column in (columns.positions, columns.flags, *weights):
            column[targets] = column[sources]
    for slots, new in _pairs(moves.placed):
        metadata = _metadata(batch, place, slots)
        positions = torch.tensor(new) + int(batch.tables.lengths[slot])
        columns.positions[metadata] = positions.int().to(metadata.device)
        flags = batch.staged.flags[np.array(new) + batch.staging_slots[place[0]]]
        columns.flags[metadata] = torch.from_numpy(flags).to(metadata.device)
        if weighted:
            columns.log_weights[metadata] = 0.0


def _pairs(pairs: Sequence[tuple[int, int]]) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """The pairs as two sequences; nothing if there are none."""
    if pairs:
        slots, others = zip(*pairs, strict=True)
        yield slots, others

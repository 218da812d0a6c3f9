"""Retention in plain torch, one KV head at a time."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from kvstore.kernels.paged_batch import FedRows, PagedBatch, StepScratch
from kvstore.retention import keep_mask
from kvstore.rule_table import decode
from kvstore.rules import RetentionRule, ScoreUpdate

_Place = tuple[int, int, int]


def decide(batch: PagedBatch, scratch: StepScratch, flags: torch.Tensor) -> NDArray[np.int32]:
    """See op.py."""
    fed = flags.shape[1]
    rows_after = batch.rows.copy()
    for place in _heads(batch):
        total, start = int(batch.rows[place]) + fed, int(scratch.starts[place])
        if start < 0:
            rows_after[place] = total
            continue
        stays = _stays(batch, scratch, place, flags[place[0]])
        scratch.stays[start : start + total] = stays.cpu().numpy()
        rows_after[place] = int(stays.sum())
    return rows_after


def carry(
    batch: PagedBatch,
    scratch: StepScratch,
    fed: FedRows,
    flags: torch.Tensor,
    rows_after: NDArray[np.int32],
) -> None:
    """See op.py."""
    block = flags.shape[1]
    for place in _heads(batch):
        held, start = int(batch.rows[place]), int(scratch.starts[place])
        stays = scratch.stays[start : start + held + block] if start >= 0 else None
        gone = [] if stays is None else np.flatnonzero(~stays).tolist()
        moves = refill(held, block, gone)
        assert moves.rows == rows_after[place], "what was decided is carried out"
        index = batch.flat_rows(*place, max(held, moves.rows))
        _move(batch, index, moves)
        _place(batch, index, moves, fed, flags[place[0]], place)
        if scratch.scored[place]:
            scores = torch.from_numpy(scratch.received[start : start + held + block])
            batch.scores[index[: moves.rows]] = scores[moves.origins(held)].to(index.device)


def _heads(batch: PagedBatch) -> Iterator[_Place]:
    sequences, layers = batch.rows.shape[:2]
    for sequence, layer in itertools.product(range(sequences), range(layers)):
        for head in range(batch.kv_heads[layer]):
            yield sequence, layer, head


def _stays(
    batch: PagedBatch, scratch: StepScratch, place: _Place, new_flags: torch.Tensor
) -> torch.Tensor:
    """Which of a head's rows its rule keeps, bool `[R + m]`; the new scores go to the scratch."""
    rule = decode(batch.rules[place])
    held, fed, length = int(batch.rows[place]), len(new_flags), int(batch.lengths[place[0]])
    index = batch.flat_rows(*place, held)
    own = torch.arange(length, length + fed, dtype=torch.int32, device=index.device)
    scores = None
    if rule.needs_scores:
        entries = slice(int(scratch.starts[place]), int(scratch.starts[place]) + held + fed)
        received = torch.from_numpy(scratch.received[entries]).to(index.device)
        scores = grown_scores(rule, batch.scores[index], received)
        scratch.received[entries] = scores.cpu().numpy()
    return keep_mask(
        rule,
        torch.cat((batch.positions[index], own)),
        scores,
        torch.cat((batch.flags[index], new_flags.to(index.device))),
        length + fed,
    )


def grown_scores(rule: RetentionRule, held: torch.Tensor, received: torch.Tensor) -> torch.Tensor:
    """Held and new rows' scores after the block, f32 `[R + m]`."""
    fed = len(received) - len(held)
    if rule.score_update is ScoreUpdate.NONE:
        return torch.cat((held, held.new_zeros(fed)))
    decay = rule.score_decay**fed if rule.score_update is ScoreUpdate.DECAYED else 1.0
    scores = received.clone()
    scores[: len(held)].add_(held, alpha=decay)
    return scores


@dataclasses.dataclass(frozen=True, slots=True)
class RetainMoves:
    """How a head's slots change, as data: nothing that stays and need not move is touched.

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
        """For each slot afterwards the row of `[0, held + m)` that lies in it."""
        origins = list(range(self.rows))
        for slot, new in self.placed:
            origins[slot] = held + new
        for slot, old in self.moved:
            origins[slot] = old
        return origins


def refill(held: int, fed: int, gone: list[int]) -> RetainMoves:
    """Fill the slots of the victims; `gone` are the rows of `[0, held + fed)` that leave."""
    leaving = set(gone)
    holes = [row for row in gone if row < held]
    survivors = [new for new in range(fed) if held + new not in leaving]
    filled = min(len(holes), len(survivors))
    placed = list(zip(holes[:filled], survivors[:filled], strict=True))
    placed += [(held + n, new) for n, new in enumerate(survivors[filled:])]
    rows = held - len(holes) + len(survivors)
    open_holes = [hole for hole in holes[filled:] if hole < rows]
    # holes are refilled in ascending order, so no refilled one lies in the tail
    tail = [row for row in range(rows, held) if row not in leaving]
    return RetainMoves(tuple(placed), tuple(zip(open_holes, tail, strict=True)), rows)


def _move(batch: PagedBatch, index: torch.Tensor, moves: RetainMoves) -> None:
    if moves.moved:
        targets, sources = index[torch.tensor(moves.moved, device=index.device).t()]
        for column in (batch.keys, batch.values, batch.positions, batch.flags):
            column[targets] = column[sources]


def _place(
    batch: PagedBatch,
    index: torch.Tensor,
    moves: RetainMoves,
    fed: FedRows,
    flags: torch.Tensor,
    place: _Place,
) -> None:
    if moves.placed:
        slots, new = torch.tensor(moves.placed, device=index.device).t()
        batch.keys[index[slots]] = fed.keys[place][new]
        batch.values[index[slots]] = fed.values[place][new]
        batch.positions[index[slots]] = (int(batch.lengths[place[0]]) + new).int()
        batch.flags[index[slots]] = flags.to(new.device)[new]

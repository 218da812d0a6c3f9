"""Retention decisions in plain torch, one KV head at a time."""

from __future__ import annotations

import torch

from kvstore.kernels.retain.moves import RetainMoves, RowMarks
from kvstore.retention import keep_mask
from kvstore.rules import RetentionRule, ScoreUpdate


def decide(
    rule: RetentionRule,
    held: RowMarks,
    fed: RowMarks,
    received: torch.Tensor | None,
    length: int,
) -> RetainMoves:
    scores = grown_scores(rule, held, fed.rows, received) if rule.needs_scores else None
    flags = None
    if rule.needs_flags:
        assert held.flags is not None, "a rule that protects classes has a flag per held row"
        assert fed.flags is not None, "a rule that protects classes has a flag per fed row"
        flags = torch.cat((held.flags, fed.flags))
    positions = torch.cat((held.positions, fed.positions))
    kept = keep_mask(rule, positions, scores, flags, length)
    gone = kept.logical_not().nonzero().flatten().tolist()
    if not gone:
        return append(held.rows, fed.rows, scores)
    return refill(held.rows, fed.rows, gone, scores)


def grown_scores(
    rule: RetentionRule, held: RowMarks, fed: int, received: torch.Tensor | None
) -> torch.Tensor:
    """Held and new rows' scores after the block, f32 `[R + m]`."""
    assert held.scores is not None, "a rule with a budget has a score per held row"
    if rule.score_update is ScoreUpdate.NONE:
        return torch.cat((held.scores, held.scores.new_zeros(fed)))
    assert received is not None, "scores grow by what the rows received"
    scores = received.clone()
    decay = rule.score_decay**fed if rule.score_update is ScoreUpdate.DECAYED else 1.0
    scores[: held.rows].add_(held.scores, alpha=decay)
    return scores


def append(held: int, fed: int, scores: torch.Tensor | None) -> RetainMoves:
    """All rows stay: the new ones follow the old ones."""
    return RetainMoves(tuple((held + n, n) for n in range(fed)), (), held + fed, scores)


def refill(held: int, fed: int, gone: list[int], scores: torch.Tensor | None) -> RetainMoves:
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
    moved = tuple(zip(open_holes, tail, strict=True))
    return RetainMoves(tuple(placed), moved, rows, _arranged(scores, held, rows, placed, moved))


def _arranged(
    scores: torch.Tensor | None,
    held: int,
    rows: int,
    placed: list[tuple[int, int]],
    moved: tuple[tuple[int, int], ...],
) -> torch.Tensor | None:
    """Scores by slot after the moves, f32 `[rows]`; all are read before any is written."""
    if scores is None:
        return None
    sources = [(slot, held + new) for slot, new in placed if slot != held + new] + list(moved)
    if sources:
        slots, rows_before = (
            torch.tensor(side, device=scores.device) for side in zip(*sources, strict=True)
        )
        scores.index_copy_(0, slots, scores.index_select(0, rows_before))
    return scores[:rows]

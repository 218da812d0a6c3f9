from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvstore.kernels.retain import RowMarks, retain_moves
from kvstore.kernels.retain.reference import refill
from kvstore.rules import FULL_RULE, RetentionRule, ScoreUpdate


def marks(first: int, rows: int, scores: list[float] | None = None) -> RowMarks:
    positions = torch.arange(first, first + rows, dtype=torch.int32)
    return RowMarks(positions, torch.tensor(scores) if scores is not None else None)


def test_a_full_head_appends() -> None:
    moves = retain_moves(FULL_RULE, marks(0, 2), marks(2, 2), None, 4)
    assert (moves.placed, moves.moved, moves.rows) == (((2, 0), (3, 1)), (), 4)


def test_a_window_overwrites_the_row_that_leaves() -> None:
    moves = retain_moves(RetentionRule(window=3), marks(0, 3), marks(3, 1), None, 4)
    assert (moves.placed, moves.moved, moves.rows) == (((0, 0),), (), 3)


def test_open_holes_are_filled_from_the_tail() -> None:
    rule = RetentionRule(budget_rows=2)
    held = marks(0, 5, [0.1, 0.2, 0.9, 0.3, 0.8])
    moves = retain_moves(rule, held, marks(5, 1), torch.zeros(6), 6)
    assert (moves.placed, moves.moved, moves.rows) == ((), ((0, 2), (1, 4)), 2)
    assert moves.scores is not None
    assert moves.scores.tolist() == pytest.approx([0.9, 0.8])


@pytest.mark.parametrize(
    ("update", "expected"),
    [
        (ScoreUpdate.SUM, [1.1, 2.2, 0.3, 0.4]),
        # two tokens were fed: held scores shrink by 0.5 twice before they grow
        (ScoreUpdate.DECAYED, [0.35, 0.7, 0.3, 0.4]),
        (ScoreUpdate.NONE, [1.0, 2.0, 0.0, 0.0]),
    ],
)
def test_scores_grow_by_the_rules_update(update: ScoreUpdate, expected: list[float]) -> None:
    rule = RetentionRule(budget_rows=9, score_update=update, score_decay=0.5)
    received = torch.tensor([0.1, 0.2, 0.3, 0.4])
    held = marks(0, 2, [1.0, 2.0])
    moves = retain_moves(rule, held, marks(2, 2), received, 4)
    assert moves.scores is not None
    assert moves.scores.tolist() == pytest.approx(expected)
    assert held.scores is not None
    assert held.scores.tolist() == [1.0, 2.0]
    assert received.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])


@given(st.lists(st.booleans(), max_size=12), st.lists(st.booleans(), max_size=6))
def test_the_slots_hold_exactly_the_survivors(held: list[bool], fed: list[bool]) -> None:
    """Which rows leave is arbitrary: the bookkeeping must hold for every pattern."""
    gone = [row for row, stays in enumerate(held + fed) if not stays]
    scores = torch.arange(len(held) + len(fed), dtype=torch.float32)
    moves = refill(len(held), len(fed), gone, scores)
    slots = dict(enumerate(range(len(held))))
    slots.update({slot: len(held) + new for slot, new in moves.placed})
    slots.update(dict(moves.moved))
    final = [slots[slot] for slot in range(moves.rows)]
    assert sorted(final) == [row for row, stays in enumerate(held + fed) if stays]
    assert moves.scores is not None
    assert moves.scores.tolist() == final
    untouched = [slot for slot in range(min(moves.rows, len(held))) if held[slot]]
    assert all(slots[slot] == slot for slot in untouched)
    assert all(old >= moves.rows for _, old in moves.moved)

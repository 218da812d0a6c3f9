from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvstore.kernels.retain.reference import grown_scores, refill
from kvstore.rules import RetentionRule, ScoreUpdate


def test_rows_that_all_stay_are_appended_to() -> None:
    moves = refill(2, 2, [])
    assert (moves.placed, moves.moved, moves.rows) == (((2, 0), (3, 1)), (), 4)


def test_a_new_row_takes_the_slot_of_the_row_that_leaves() -> None:
    moves = refill(3, 1, [0])
    assert (moves.placed, moves.moved, moves.rows) == (((0, 0),), (), 3)


def test_open_holes_are_filled_from_the_tail() -> None:
    moves = refill(5, 1, [0, 1, 3, 5])
    assert (moves.placed, moves.moved, moves.rows) == ((), ((0, 2), (1, 4)), 2)


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
    row_attention = torch.tensor([0.1, 0.2, 0.3, 0.4])
    held = torch.tensor([1.0, 2.0])
    assert grown_scores(rule, held, row_attention).tolist() == pytest.approx(expected)
    assert held.tolist() == [1.0, 2.0]
    assert row_attention.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])


@given(st.lists(st.booleans(), max_size=12), st.lists(st.booleans(), max_size=6))
def test_the_slots_hold_exactly_the_survivors(held: list[bool], new_tokens: list[bool]) -> None:
    """Any rows may be dropped, and the tables must be right for each pattern."""
    gone = [row for row, stays in enumerate(held + new_tokens) if not stays]
    moves = refill(len(held), len(new_tokens), gone)
    slots = dict(enumerate(range(len(held))))
    slots.update({slot: len(held) + new for slot, new in moves.placed})
    slots.update(dict(moves.moved))
    final = [slots[slot] for slot in range(moves.rows)]
    assert sorted(final) == [row for row, stays in enumerate(held + new_tokens) if stays]
    assert moves.origins(len(held)) == final
    untouched = [slot for slot in range(min(moves.rows, len(held))) if held[slot]]
    assert all(slots[slot] == slot for slot in untouched)
    assert all(old >= moves.rows for _, old in moves.moved)

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvstore.policies.selection import kept_count
from kvstore.retention import _highest, _highest_without_waiting, keep_mask
from kvstore.rules import FULL_RULE, RetentionRule, TokenClass
from tests.kvstore.retention_strategies import rules


def kept_positions(
    rule: RetentionRule,
    length: int,
    scores: list[float] | None = None,
    classes: list[int] | None = None,
) -> list[int]:
    """Return the positions that stay, of 0 to `length` − 1."""
    mask = keep_mask(
        rule,
        torch.arange(length, dtype=torch.int32),
        torch.tensor(scores) if scores is not None else None,
        torch.tensor(classes, dtype=torch.uint8) if classes is not None else None,
        length,
    )
    return [int(p) for p in mask.nonzero().flatten()]


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (FULL_RULE, [0, 1, 2, 3, 4, 5, 6, 7]),
        (RetentionRule(full=True, horizon=3), [5, 6, 7]),
        (RetentionRule(), []),
        (RetentionRule(sinks=2, window=3), [0, 1, 5, 6, 7]),
        (RetentionRule(sinks=2, window=1, floor_rows=4), [0, 1, 6, 7]),
        (RetentionRule(sinks=1, window=2, horizon=4), [6, 7]),
        (RetentionRule(generated_from=5, generated_window=8), [5, 6, 7]),
        (RetentionRule(generated_from=2, generated_window=2), [6, 7]),
        (RetentionRule(protected=TokenClass.SPECIAL), [0, 3]),
        (RetentionRule(protected=TokenClass.SPECIAL | TokenClass.PUNCTUATION), [0, 3, 6]),
        (RetentionRule(budget_rows=2), [2, 7]),
        (RetentionRule(budget_ratio=0.3), [2, 5, 7]),
        (RetentionRule(budget_rows=2, window=1), [2, 7]),
        (RetentionRule(budget_rows=2, window=1, budget_beyond=True), [2, 5, 7]),
        (RetentionRule(budget_rows=2, horizon=4), [7]),
    ],
)
def test_each_clause_keeps_its_rows(rule: RetentionRule, kept: list[int]) -> None:
    scores = [0.0, 0.1, 0.9, 0.2, 0.3, 0.5, 0.4, 0.8]
    classes = [1, 0, 0, 3, 0, 0, 2, 0]
    assert kept_positions(rule, 8, scores, classes) == kept


def test_of_equal_scores_the_earlier_positions_win_in_any_row_order() -> None:
    positions = torch.tensor([4, 0, 3, 1, 2], dtype=torch.int32)
    scores = torch.tensor([1.0, 1.0, 2.0, 1.0, 1.0])
    mask = keep_mask(RetentionRule(budget_rows=3), positions, scores, None, 5)
    assert positions[mask].tolist() == [0, 3, 1]


def test_a_budget_that_rounds_to_nothing_keeps_nothing() -> None:
    assert kept_positions(RetentionRule(budget_ratio=1e-12), 3, [1.0, 2.0, 3.0]) == []


@given(rules(), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=40))
def test_tied_scores_agree_with_sorting(rule: RetentionRule, marks: list[tuple[int, int]]) -> None:
    """Scores of four values only, so that nearly every decision is a tie."""
    length = len(marks)
    kept = {
        p
        for p, (flag, _) in enumerate(marks)
        if rule.full
        or p < rule.sinks
        or length - 1 - p < rule.recent_rows
        or (p >= rule.generated_from and length - 1 - p < rule.generated_window)
        or flag & rule.protected
    }
    if rule.has_budget:
        candidates = [p for p in range(length) if not (rule.budget_beyond and p in kept)]
        candidates.sort(key=lambda p: (-marks[p][1], p))
        kept.update(candidates[: rule.budget(length)])
    if rule.horizon:
        kept = {p for p in kept if length - 1 - p < rule.horizon}
    scores = [float(score) for _, score in marks]
    assert kept_positions(rule, length, scores, [flag for flag, _ in marks]) == sorted(kept)


@given(rules(), st.data())
def test_the_sort_for_devices_finds_the_same_rows(rule: RetentionRule, data: st.DataObject) -> None:
    """Few different scores, so that many are equal; rows in any order of positions."""
    length = data.draw(st.integers(1, 40))
    positions = torch.tensor(data.draw(st.permutations(range(length))), dtype=torch.int32)
    scores = torch.tensor([float(data.draw(st.integers(0, 3))) for _ in range(length)])
    kept = positions < data.draw(st.integers(0, length))
    competing = length
    if rule.budget_beyond:
        scores, competing = scores.masked_fill(kept, -torch.inf), int((~kept).sum())
    expected = _highest(scores, positions, competing, rule.budget(length)) | kept
    found = _highest_without_waiting(scores, positions, kept, rule, length) | kept
    assert torch.equal(found, expected)


@given(rules(), st.integers(1, 40), st.data())
def test_a_known_count_is_the_number_of_rows_kept(
    rule: RetentionRule, length: int, data: st.DataObject
) -> None:
    scores = torch.tensor([float(data.draw(st.integers(0, 3))) for _ in range(length)])
    classes = torch.zeros(length, dtype=torch.uint8)
    mask = keep_mask(rule, torch.arange(length, dtype=torch.int32), scores, classes, length)
    assert kept_count(rule, length) in (None, int(mask.sum()))

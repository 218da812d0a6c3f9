from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvstore.rule_table import (
    RULE_DTYPE,
    full_rules,
    may_evict,
    needs_scores,
    rule_from_record,
    rule_to_record,
)
from kvstore.rules import FULL_RULE, RetentionRule
from tests.kvstore.retention_strategies import rules


@given(rules())
def test_an_entry_is_the_whole_rule(rule: RetentionRule) -> None:
    assert rule_from_record(rule_to_record(rule)) == rule


def test_every_field_of_a_rule_has_a_place() -> None:
    assert set(RULE_DTYPE.names or ()) == {f.name for f in dataclasses.fields(RetentionRule)}


@given(st.lists(rules(), min_size=1, max_size=4))
def test_a_table_of_rules_answers_as_its_rules_do(head_rules: list[RetentionRule]) -> None:
    table = np.stack([rule_to_record(rule) for rule in head_rules])
    assert needs_scores(table).tolist() == [rule.needs_scores for rule in head_rules]
    assert may_evict(table).tolist() == [not rule.full or rule.horizon > 0 for rule in head_rules]


def test_a_new_table_keeps_everything() -> None:
    assert rule_from_record(full_rules((2, 3))[1, 2]) == FULL_RULE

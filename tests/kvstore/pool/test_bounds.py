from __future__ import annotations

from hypothesis import event, given, settings
from hypothesis import strategies as st

from kvstore.cache import LayerShape
from kvstore.pool import PageCount, pages_bound
from kvstore.pool.bounds import rows_bound
from kvstore.rules import FULL_RULE, RetentionRule, TokenClass
from tests.kvstore.pool.test_decoding import Decoding, blocks
from tests.kvstore.retention_strategies import rules


def test_the_dense_bound_counts_every_head_of_every_layer() -> None:
    shapes = (LayerShape(3, 9, 64), LayerShape(2, 2, 64))
    assert pages_bound(shapes, 0, 16) == PageCount(0, 0)
    assert pages_bound(shapes, 16, 16) == PageCount(5, 5)
    assert pages_bound(shapes, 17, 16) == PageCount(10, 10)


def test_the_bound_of_rows_for_each_kind_of_rule() -> None:
    assert rows_bound(FULL_RULE, 10, 20, 100) == 90
    assert rows_bound(RetentionRule(full=True, horizon=30), 10, 20, 100) == 30
    assert rows_bound(RetentionRule(sinks=4, window=16), 18, 20, 100) == 20
    # of a prompt of 100 tokens 30 rows were chosen, and no other of its rows comes back
    chosen = RetentionRule(sinks=100, generated_from=100, generated_window=8)
    assert rows_bound(chosen, 30, 100, 500) == 38
    assert rows_bound(chosen, 10, 50, 500) == 108
    assert rows_bound(RetentionRule(window=2, budget_ratio=0.3), 8, 20, 100) == 32
    protecting = RetentionRule(protected=TokenClass.SPECIAL, window=2)
    assert rows_bound(protecting, 8, 20, 100) == 88
    # the prompt's plan kept more than the rule will
    assert rows_bound(RetentionRule(window=2), 8, 20, 100) == 8


@settings(max_examples=80, deadline=None)
@given(rules(), st.integers(0, 30), blocks, st.integers(0, 2**20))
def test_a_reservation_of_the_bound_is_never_too_small(
    rule: RetentionRule, prompt: int, new_tokens: list[int], seed: int
) -> None:
    """The pool raises if a step wants more than its reservation, here exactly the bound."""
    decoding = Decoding(60, (rule,), prompt, seed)
    bound = decoding.paged.pages_bound(prompt + sum(new_tokens))
    used = decoding.pool.used_pages
    decoding.paged.reservation.trim_to(PageCount(bound.rows - used, bound.metadata))
    for block in new_tokens:
        decoding.feed(decoding.classes(block))
    event("reached the bound" if decoding.pool.used_pages == bound.rows else "stayed below")

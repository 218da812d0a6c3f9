"""Compaction against indexing by hand."""

import dataclasses

import pytest
import torch

from kvstore.cache import LayerShape
from kvstore.compaction import compact_layer
from kvstore.plans import FittedRows, HeadPlan, LayerPlan
from kvstore.rules import FULL_RULE, RetentionRule, ScoreUpdate, TokenClass

TOKENS = 63
RULES = (
    FULL_RULE,
    RetentionRule(sinks=2, protected=TokenClass.SPECIAL),
    RetentionRule(budget_rows=3, score_update=ScoreUpdate.SUM),
    RetentionRule(window=4),
    RetentionRule(protected=TokenClass.SPECIAL, budget_ratio=0.1, score_update=ScoreUpdate.SUM),
)
ROWS = (list(range(TOKENS)), [0, 1, 40], [5, 9, 62], [], [7, 8])


def plan_and_classes():
    torch.manual_seed(0)
    classes = torch.randint(0, 4, (TOKENS,), dtype=torch.uint8)
    heads = tuple(
        HeadPlan(rule, torch.tensor(rows, dtype=torch.int64), scores, 0.5 + head / 10)
        for head, (rule, rows) in enumerate(zip(RULES, ROWS, strict=True))
        for scores in [torch.rand(TOKENS) if rule.needs_scores else None]
    )
    return LayerPlan(LayerShape(5, 10, 8), heads), classes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_head_holds_its_planned_rows_and_no_more(dtype):
    plan, classes = plan_and_classes()
    k, v = torch.randn(5, TOKENS, 8).to(dtype), torch.randn(5, TOKENS, 8).to(dtype)
    layer = compact_layer(k, v, plan, classes)
    assert layer.head_row_counts() == tuple(len(rows) for rows in ROWS)
    assert layer.attention_coverage == tuple(head.attention_coverage for head in plan.heads)
    for number, (head, rows) in enumerate(zip(layer.heads(), ROWS, strict=True)):
        planned = plan.heads[number]
        assert head.rule == planned.rule
        assert head.positions.tolist() == rows
        assert torch.equal(head.keys, k[number, rows])
        assert torch.equal(head.values, v[number, rows])
        assert (head.scores is None) == (planned.scores is None)
        if head.scores is not None:
            assert torch.equal(head.scores, planned.scores[rows])
        assert (head.flags is None) == (not planned.rule.needs_flags)
        if head.flags is not None:
            assert torch.equal(head.flags, classes[rows])


def test_metadata_is_stored_only_where_a_rule_needs_it():
    plan, classes = plan_and_classes()
    layer = compact_layer(torch.zeros(5, TOKENS, 8), torch.zeros(5, TOKENS, 8), plan, classes)
    assert layer.scores.numel() == len(ROWS[2]) + len(ROWS[4])
    assert layer.flags.numel() == len(ROWS[1]) + len(ROWS[4])
    assert (layer.positions.dtype, layer.scores.dtype, layer.flags.dtype) == (
        torch.int32,
        torch.float32,
        torch.uint8,
    )


def test_the_layer_owns_its_memory():
    plan, classes = plan_and_classes()
    # as transformers hands them over: heads and tokens swapped in memory
    k = torch.randn(TOKENS, 5, 8).transpose(0, 1)
    v = torch.randn(TOKENS, 5, 8).transpose(0, 1)
    layer = compact_layer(k, v, plan, classes)
    before = layer.keys.clone(), layer.values.clone()
    k.zero_()
    v.zero_()
    assert layer.keys.is_contiguous()
    assert layer.keys.untyped_storage().nbytes() == layer.keys.nbytes
    assert torch.equal(layer.keys, before[0])
    assert torch.equal(layer.values, before[1])


def test_compacted_heads_hold_the_fitted_keys_and_values():
    plan, classes = plan_and_classes()
    heads = list(plan.heads)
    for head in (1, 4):
        parts = [torch.randn(len(ROWS[head]), 8) for _ in range(2)]
        # the first with values of its own, the second with keys too
        keys = parts[1] if head == 4 else None
        fitted = FittedRows(parts[0], torch.rand(len(ROWS[head])), keys)
        heads[head] = dataclasses.replace(heads[head], fitted=fitted)
    k, v = torch.randn(5, TOKENS, 8), torch.randn(5, TOKENS, 8)
    layer = compact_layer(k, v, dataclasses.replace(plan, heads=tuple(heads)), classes)
    assert layer.weighted == (False, True, False, False, True)
    for number, (held, planned) in enumerate(zip(layer.heads(), heads, strict=True)):
        rows, fitted = ROWS[number], planned.fitted
        merged = fitted is not None
        own_keys = k[number, rows]
        keys = fitted.keys if merged and fitted.keys is not None else own_keys
        assert torch.equal(held.keys, keys)
        assert torch.equal(held.values, fitted.values if merged else v[number, rows])
        assert (held.log_weights is not None) == merged
        assert not merged or torch.equal(held.log_weights, fitted.log_weights)

from __future__ import annotations

import math

import pytest
import torch

from kvstore.cache import HeadRows
from kvstore.kernels.ragged_attention import AttentionStep, ragged_attention
from kvstore.rules import FULL_RULE, RetentionRule, ScoreUpdate

SCORED = RetentionRule(budget_rows=4, score_update=ScoreUpdate.SUM)
GROUP, SIZE = 3, 8
# a head empty, and sizes around the widths that vectors and tiles have
ROWS = (0, 1, 63, 257)
RULES = (SCORED, FULL_RULE, SCORED, SCORED)


def a_step(
    fed: int, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, list[HeadRows], torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(fed)
    heads = []
    for rows, rule in zip(ROWS, RULES, strict=True):
        positions = torch.randperm(300, generator=generator)[:rows].int()
        keys, values = torch.randn(2, rows, SIZE, generator=generator).to(dtype)
        heads.append(HeadRows(rule, keys, values, positions))
    q = torch.randn(len(ROWS) * GROUP, fed, SIZE, generator=generator).to(dtype)
    new_keys, new_values = torch.randn(2, len(ROWS), fed, SIZE, generator=generator).to(dtype)
    return q, heads, new_keys, new_values


def dense(
    q: torch.Tensor,
    heads: list[HeadRows],
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    first: int,
    window: int | None,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Attention in float64 over each head's rows under an explicit mask."""
    fed = q.shape[1]
    own = torch.arange(first, first + fed)
    outs, received = [], []
    for number, head in enumerate(heads):
        positions = torch.cat((head.positions.long(), own))
        keys = torch.cat((head.keys, new_keys[number])).double()
        values = torch.cat((head.values, new_values[number])).double()
        distance = own[:, None] - positions
        seen = (distance >= 0) & (distance < (window or 10**9))
        total = torch.zeros(len(positions), dtype=torch.float64)
        for query in q[number * GROUP : (number + 1) * GROUP].double():
            logits = (query @ keys.T / math.sqrt(SIZE)).masked_fill(~seen, -torch.inf)
            probabilities = logits.softmax(-1)
            outs.append(probabilities @ values)
            total += probabilities.sum(0) / GROUP
        received.append(total)
    return torch.stack(outs), received


def attend(
    q: torch.Tensor,
    heads: list[HeadRows],
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    window: int | None = None,
) -> AttentionStep:
    scale = 1 / math.sqrt(SIZE)
    return ragged_attention(q, heads, new_keys, new_values, 300, scale=scale, sliding_window=window)


@pytest.mark.parametrize("window", [None, 1, 40, 1000])
@pytest.mark.parametrize("fed", [1, 2, 63])
def test_agrees_with_dense_attention_in_float64(fed: int, window: int | None) -> None:
    step = a_step(fed)
    result = attend(*step, window)
    out, received = dense(*step, 300, window)
    torch.testing.assert_close(result.out.double(), out, atol=2e-6, rtol=1e-5)
    for rule, got, expected in zip(RULES, result.received, received, strict=True):
        if not rule.needs_scores:
            assert got is None
            continue
        assert got is not None
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, atol=5e-6, rtol=1e-5)


def test_every_query_gives_all_of_its_probability() -> None:
    fed = 5
    for share, rows in zip(attend(*a_step(fed)).received, ROWS, strict=True):
        if share is not None:
            assert share.shape == (rows + fed,)
            assert float(share.sum()) == pytest.approx(fed, abs=1e-5)


def test_row_order_does_not_matter() -> None:
    q, heads, new_keys, new_values = a_step(3)
    shuffled, orders = [], []
    for head in heads:
        order = torch.randperm(head.rows)
        orders.append(order)
        shuffled.append(
            HeadRows(head.rule, head.keys[order], head.values[order], head.positions[order])
        )
    plain = attend(q, heads, new_keys, new_values, 40)
    other = attend(q, shuffled, new_keys, new_values, 40)
    torch.testing.assert_close(other.out, plain.out, atol=2e-6, rtol=1e-5)
    for order, before, after in zip(orders, plain.received, other.received, strict=True):
        if before is not None and after is not None:
            torch.testing.assert_close(after[: len(order)], before[order], atol=2e-6, rtol=1e-5)


def test_half_precision_rows_are_accumulated_in_f32() -> None:
    step = a_step(2, torch.bfloat16)
    result = attend(*step)
    assert result.out.dtype == torch.bfloat16
    out, _ = dense(*step, 300, None)
    # nothing but the result itself is rounded to bfloat16
    torch.testing.assert_close(result.out, out.to(torch.bfloat16), atol=1e-6, rtol=1 / 128)

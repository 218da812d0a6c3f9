from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from kvstore.cache import HeadRows, LayerShape, RaggedLayer
from kvstore.kernels.paged_batch import PagedBatch
from kvstore.pool import BatchStep, PageCount, PagePool
from kvstore.rules import FULL_RULE, RetentionRule, ScoreUpdate

SCORED = RetentionRule(budget_rows=4, score_update=ScoreUpdate.SUM)
GROUP, SIZE, PAGE_ROWS, FIRST = 3, 8, 16, 300
# a head empty, and sizes around the widths that vectors, tiles and pages have
ROWS = ((0, 1, 63, 257), (64, 16, 0, 0))
RULES = (SCORED, FULL_RULE, SCORED, SCORED)


@dataclasses.dataclass(frozen=True)
class Fed:
    """One sequence's queries and new rows, and the rows its heads hold."""

    q: torch.Tensor
    heads: list[HeadRows]
    keys: torch.Tensor
    values: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Outcome:
    out: torch.Tensor
    received: list[torch.Tensor | None]


def a_sequence(rows: Sequence[int], fed: int, dtype: torch.dtype = torch.float32) -> Fed:
    generator = torch.Generator().manual_seed(fed + sum(rows))
    heads = []
    for count, rule in zip(rows, RULES, strict=True):
        positions = torch.randperm(FIRST, generator=generator)[:count].int()
        keys, values = torch.randn(2, count, SIZE, generator=generator).to(dtype)
        heads.append(HeadRows(rule, keys, values, positions))
    q = torch.randn(len(rows) * GROUP, fed, SIZE, generator=generator).to(dtype)
    new_keys, new_values = torch.randn(2, len(rows), fed, SIZE, generator=generator).to(dtype)
    return Fed(q, heads, new_keys, new_values)


def a_batch(fed: int, dtype: torch.dtype = torch.float32) -> list[Fed]:
    return [a_sequence(rows, fed, dtype) for rows in ROWS]


def dense(sequence: Fed, window: int | None) -> Outcome:
    """Attention in float64 over each head's rows under an explicit mask."""
    fed = sequence.q.shape[1]
    own = torch.arange(FIRST, FIRST + fed)
    outs, received = [], []
    for number, head in enumerate(sequence.heads):
        positions = torch.cat((head.positions.long(), own))
        keys = torch.cat((head.keys, sequence.keys[number])).double()
        values = torch.cat((head.values, sequence.values[number])).double()
        distance = own[:, None] - positions
        seen = (distance >= 0) & (distance < (window or 10**9))
        total = torch.zeros(len(positions), dtype=torch.float64)
        for query in sequence.q[number * GROUP : (number + 1) * GROUP].double():
            logits = query @ keys.T / math.sqrt(SIZE)
            if head.log_weights is not None:
                logits[:, : head.rows] += head.log_weights
            logits.masked_fill_(~seen, -torch.inf)
            probabilities = logits.softmax(-1)
            outs.append(probabilities @ values)
            total += probabilities.sum(0) / GROUP
        received.append(total if head.rule.needs_scores else None)
    return Outcome(torch.stack(outs), received)


def attend(batch: list[Fed], window: int | None = None) -> list[Outcome]:
    """All sequences together, out of the pages of one pool."""
    fed, shape = batch[0].q.shape[1], LayerShape(len(RULES), len(RULES) * GROUP, SIZE, window)
    pool = PagePool((shape,), pages=80, page_rows=PAGE_ROWS, dtype=batch[0].q.dtype, poison=True)
    pages = [pool.open(FIRST, PageCount(30, 30)) for _ in batch]
    for sequence, held in zip(batch, pages, strict=True):
        held.load(0, a_layer(sequence.heads))
    classes = np.zeros((len(batch), fed), np.uint8)
    step = BatchStep.whole(pages, classes, pool.new_fed_rows(classes.size))
    q, k, v = (
        torch.cat([getattr(one, name) for one in batch], 1) for name in ("q", "keys", "values")
    )
    flat = step.attend(0, q, k, v, 1 / math.sqrt(SIZE), window)
    outs = flat.unflatten(0, (len(batch), fed)).transpose(1, 2)
    scratch = step._scratch
    return [
        Outcome(
            out,
            [
                torch.from_numpy(scratch.received[start : start + head.rows + fed])
                if head.rule.needs_scores
                else None
                for head, start in zip(sequence.heads, scratch.starts[row, 0], strict=True)
            ],
        )
        for row, (out, sequence) in enumerate(zip(outs, batch, strict=True))
    ]


def a_layer(heads: list[HeadRows]) -> RaggedLayer:
    offsets = [0]
    for head in heads:
        offsets.append(offsets[-1] + head.rows)
    return RaggedLayer(
        torch.cat([head.keys for head in heads]),
        torch.cat([head.values for head in heads]),
        torch.cat([head.positions for head in heads]),
        tuple(offsets),
        tuple(head.rule for head in heads),
        (1.0,) * len(heads),
        torch.zeros(sum(head.rows for head in heads if head.rule.needs_scores)),
        torch.empty(0, dtype=torch.uint8),
        torch.cat([torch.empty(0), *(h.log_weights for h in heads if h.log_weights is not None)]),
        tuple(head.log_weights is not None for head in heads),
    )


@pytest.mark.parametrize("backend", ["compiled", "reference"])
@pytest.mark.parametrize("window", [None, 1, 40, 1000])
@pytest.mark.parametrize("fed", [1, 2, 63])
def test_agrees_with_dense_attention_in_float64(
    fed: int, window: int | None, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "reference":
        monkeypatch.setattr(PagedBatch, "on_cpu_in_f32", False)
    batch = a_batch(fed)
    for sequence, result in zip(batch, attend(batch, window), strict=True):
        expected = dense(sequence, window)
        torch.testing.assert_close(result.out.double(), expected.out, atol=2e-6, rtol=1e-5)
        for got, wanted in zip(result.received, expected.received, strict=True):
            assert (got is None) == (wanted is None)
            if got is not None and wanted is not None:
                torch.testing.assert_close(got.double(), wanted, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("backend", ["compiled", "reference"])
@pytest.mark.parametrize("window", [None, 40])
def test_log_weights_are_added_to_the_logits(
    window: int | None, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "reference":
        monkeypatch.setattr(PagedBatch, "on_cpu_in_f32", False)
    batch = [
        dataclasses.replace(
            one,
            heads=[
                dataclasses.replace(head, log_weights=torch.rand(head.rows) * 4)
                if number % 2
                else head
                for number, head in enumerate(one.heads)
            ],
        )
        for one in a_batch(1)
    ]
    for sequence, result in zip(batch, attend(batch, window), strict=True):
        expected = dense(sequence, window)
        torch.testing.assert_close(result.out.double(), expected.out, atol=2e-6, rtol=1e-5)


def test_full_heads_that_hold_everything_have_no_marks() -> None:
    """A sliding layer then finds a row's position from its slot."""
    shape = LayerShape(1, GROUP, SIZE, 40)
    pool = PagePool((shape,), pages=40, mark_pages=1, page_rows=PAGE_ROWS, dtype=torch.float32)
    keys, values = torch.randn(2, FIRST, SIZE)
    head = HeadRows(FULL_RULE, keys, values, torch.arange(FIRST).int())
    q, new = torch.randn(GROUP, 1, SIZE), torch.randn(2, 1, 1, SIZE)
    sequence = pool.open(FIRST, PageCount(30))
    sequence.load(0, a_layer([head]))
    step = BatchStep.whole([sequence], np.zeros((1, 1), np.uint8), pool.new_fed_rows(1))
    out = step.attend(0, q, *new, 1 / math.sqrt(SIZE), 40)
    expected = dense(Fed(q, [head], *new), 40)
    torch.testing.assert_close(out[0, :, None].double(), expected.out, atol=2e-6, rtol=1e-5)
    assert pool.used_mark_pages == 0


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_cut_into_parts_does_not_show(threads: int) -> None:
    before = torch.get_num_threads()
    batch = a_batch(1)
    try:
        torch.set_num_threads(threads)
        results = attend(batch)
    finally:
        torch.set_num_threads(before)
    for sequence, result in zip(batch, results, strict=True):
        expected = dense(sequence, None)
        torch.testing.assert_close(result.out.double(), expected.out, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("size", [1.0, 30.0, 300.0])
def test_logits_far_apart_agree_with_float64(size: float) -> None:
    """Most rows of such a head weigh nothing at all, and the rest must still add up."""
    batch = [dataclasses.replace(one, q=one.q * size) for one in a_batch(1)]
    for sequence, result in zip(batch, attend(batch), strict=True):
        expected = dense(sequence, None)
        # a logit of this size is itself only so exact in f32
        torch.testing.assert_close(result.out.double(), expected.out, atol=2e-6 * size, rtol=1e-5)


@pytest.mark.parametrize("fed", [1, 5])
def test_every_query_gives_all_of_its_probability(fed: int) -> None:
    for rows, result in zip(ROWS, attend(a_batch(fed)), strict=True):
        for share, count in zip(result.received, rows, strict=True):
            if share is not None:
                assert share.shape == (count + fed,)
                assert float(share.sum()) == pytest.approx(fed, abs=1e-5)


@pytest.mark.parametrize("fed", [1, 3])
def test_row_order_does_not_matter(fed: int) -> None:
    sequence = a_sequence(ROWS[0], fed)
    orders = [torch.randperm(head.rows) for head in sequence.heads]
    shuffled = [
        HeadRows(head.rule, head.keys[order], head.values[order], head.positions[order])
        for head, order in zip(sequence.heads, orders, strict=True)
    ]
    (plain,) = attend([sequence], 40)
    (other,) = attend([dataclasses.replace(sequence, heads=shuffled)], 40)
    torch.testing.assert_close(other.out, plain.out, atol=2e-6, rtol=1e-5)
    for order, before, after in zip(orders, plain.received, other.received, strict=True):
        if before is not None and after is not None:
            torch.testing.assert_close(after[: len(order)], before[order], atol=2e-6, rtol=1e-5)


def test_half_precision_rows_are_accumulated_in_f32() -> None:
    batch = a_batch(2, torch.bfloat16)
    for sequence, result in zip(batch, attend(batch), strict=True):
        assert result.out.dtype == torch.bfloat16
        out = dense(sequence, None).out
        # nothing but the result itself is rounded to bfloat16
        torch.testing.assert_close(result.out, out.to(torch.bfloat16), atol=1e-6, rtol=1 / 128)

"""Attention of fed tokens over pages, in every form that runs here, against float64."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from kvstore.attention_input import AttentionInput
from kvstore.cache import HeadRows, LayerShape
from kvstore.kernels.ragged_attention import cpu
from kvstore.pool import BatchStep, PageCount, PagePool
from kvstore.rules import FULL_RULE
from tests.kvstore.kernels.ragged_attention.batches import (
    FIRST,
    GROUP,
    PAGE_ROWS,
    ROWS,
    SIZE,
    Fed,
    a_batch,
    a_layer,
    a_sequence,
    attend,
    dense,
)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("window", [None, 1, 40, 1000])
@pytest.mark.parametrize("new_tokens", [1, 2, 63])
def test_agrees_with_dense_attention_in_float64(new_tokens: int, window: int | None) -> None:
    batch = a_batch(new_tokens)
    for sequence, result in zip(batch, attend(batch, window), strict=True):
        expected = dense(sequence, window)
        torch.testing.assert_close(result.out.double(), expected.out, atol=2e-6, rtol=1e-5)
        for got, wanted in zip(result.row_attention, expected.row_attention, strict=True):
            assert (got is None) == (wanted is None)
            if got is not None and wanted is not None:
                torch.testing.assert_close(got.double(), wanted, atol=5e-6, rtol=1e-5)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("window", [None, 40])
def test_log_weights_are_added_to_the_logits(window: int | None) -> None:
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


def test_full_heads_with_all_rows_have_no_metadata() -> None:
    """A sliding layer then finds a row's position from its slot."""
    shape = LayerShape(1, GROUP, SIZE, 40)
    pool = PagePool((shape,), pages=40, metadata_pages=1, page_rows=PAGE_ROWS, dtype=torch.float32)
    keys, values = torch.randn(2, FIRST, SIZE)
    head = HeadRows(FULL_RULE, keys, values, torch.arange(FIRST).int())
    q, new = torch.randn(GROUP, 1, SIZE), torch.randn(2, 1, 1, SIZE)
    sequence = pool.open(FIRST, PageCount(30))
    sequence.load(0, a_layer([head]))
    step = BatchStep.whole([sequence], np.zeros((1, 1), np.uint8), pool.new_staged_rows(1))
    out = step.attend(AttentionInput(0, q, *new, 1 / math.sqrt(SIZE), 40))
    expected = dense(Fed(q, [head], *new), 40)
    torch.testing.assert_close(out[0, :, None].double(), expected.out, atol=2e-6, rtol=1e-5)
    assert pool.used_metadata_pages == 0


@pytest.mark.parametrize("thread_rows", [1, 1000])
@pytest.mark.parametrize("parts", [1, 2, 3, 7, 64])
def test_results_do_not_depend_on_the_number_of_parts(
    parts: int, thread_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attention of rows of cut heads is computed in parallel too if there are many rows."""
    monkeypatch.setattr(cpu, "match_torch_threads", lambda most: parts)
    monkeypatch.setattr(cpu, "_THREAD_ROWS", thread_rows)
    batch = a_batch(1)
    for sequence, result in zip(batch, attend(batch), strict=True):
        expected = dense(sequence, None)
        torch.testing.assert_close(result.out.double(), expected.out, atol=2e-6, rtol=1e-5)
        for got, wanted in zip(result.row_attention, expected.row_attention, strict=True):
            if got is not None and wanted is not None:
                torch.testing.assert_close(got.double(), wanted, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("size", [1.0, 30.0, 300.0])
def test_logits_far_apart_agree_with_float64(size: float) -> None:
    """Most rows of such a head weigh nothing at all, and the rest must still add up."""
    batch = [dataclasses.replace(one, q=one.q * size) for one in a_batch(1)]
    for sequence, result in zip(batch, attend(batch), strict=True):
        expected = dense(sequence, None)
        # a logit of this size is itself only so exact in f32
        torch.testing.assert_close(result.out.double(), expected.out, atol=2e-6 * size, rtol=1e-5)


@pytest.mark.parametrize("new_tokens", [1, 5])
def test_every_query_gives_all_of_its_probability(new_tokens: int) -> None:
    for rows, result in zip(ROWS, attend(a_batch(new_tokens)), strict=True):
        for share, count in zip(result.row_attention, rows, strict=True):
            if share is not None:
                assert share.shape == (count + new_tokens,)
                assert float(share.sum()) == pytest.approx(new_tokens, abs=1e-5)


@pytest.mark.parametrize("new_tokens", [1, 3])
def test_row_order_does_not_matter(new_tokens: int) -> None:
    sequence = a_sequence(ROWS[0], new_tokens)
    orders = [torch.randperm(head.rows) for head in sequence.heads]
    shuffled = [
        HeadRows(head.rule, head.keys[order], head.values[order], head.positions[order])
        for head, order in zip(sequence.heads, orders, strict=True)
    ]
    (plain,) = attend([sequence], 40)
    (other,) = attend([dataclasses.replace(sequence, heads=shuffled)], 40)
    torch.testing.assert_close(other.out, plain.out, atol=2e-6, rtol=1e-5)
    for order, before, after in zip(orders, plain.row_attention, other.row_attention, strict=True):
        if before is not None and after is not None:
            torch.testing.assert_close(after[: len(order)], before[order], atol=2e-6, rtol=1e-5)


def test_half_precision_rows_are_accumulated_in_f32() -> None:
    batch = a_batch(2, torch.bfloat16)
    for sequence, result in zip(batch, attend(batch), strict=True):
        assert result.out.dtype == torch.bfloat16
        out = dense(sequence, None).out
        # nothing but the result itself is rounded to bfloat16
        torch.testing.assert_close(result.out, out.to(torch.bfloat16), atol=1e-6, rtol=1 / 128)

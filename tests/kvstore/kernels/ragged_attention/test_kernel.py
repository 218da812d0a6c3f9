"""The ragged attention kernels against dense attention in float64; more in the files beside."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from kvstore.attention_input import AttentionInput
from kvstore.cache import LayerShape
from kvstore.kernels.paged_batch import PagedBatch
from kvstore.pool import BatchStep, ChunkPart, PageCount, PagePool, RetentionChunk
from tests.kvstore.kernels.ragged_attention.batches import (
    FIRST,
    GROUP,
    PAGE_ROWS,
    SIZE,
    Fed,
    Outcome,
    a_batch,
    a_layer,
    a_sequence,
    attend,
    dense,
)

kernel = pytest.importorskip("kvstore.kernels.ragged_attention.kernel")
row_ends = pytest.importorskip("kvstore.kernels.ragged_attention.row_ends").row_ends

# heads empty, one row, and sizes around pages, tiles and slices
SHORT = ((0, 1, 20, 70), (33, 16, 0, 0))
CODECS = ("model", "fp8", "int8", "int4", "int8/int4", "model/fp8", "int4/model")
# the result itself is rounded to 16 bits
RELATIVE = {torch.float32: 1e-5, torch.bfloat16: 1 / 128, torch.float16: 1 / 1024}
# 16 bits are kept of bfloat16 weights, which coded values have in either 16-bit dtype, and values
# are up to 4
SPLIT_WEIGHTS, EXACT_WEIGHTS = 4 * 2**-17, 3e-6


@pytest.fixture(autouse=True)
def _on_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PagedBatch, "on_triton", True)


def assert_same(batch: list[Fed], found: list[Outcome], window: int | None = None) -> None:
    for sequence, result in zip(batch, found, strict=True):
        expected, dtype = dense(sequence, window), sequence.q.dtype
        coded = sequence.heads[0].layout is not None
        exact = dtype == torch.float32 or (dtype == torch.float16 and not coded)
        torch.testing.assert_close(
            result.out.double(),
            expected.out,
            atol=EXACT_WEIGHTS if exact else SPLIT_WEIGHTS,
            rtol=RELATIVE[dtype],
        )
        for got, wanted in zip(result.row_attention, expected.row_attention, strict=True):
            assert (got is None) == (wanted is None)
            if got is not None and wanted is not None:
                torch.testing.assert_close(got.double(), wanted, atol=5e-6, rtol=1e-5)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("dtype", "new_tokens", "size"),
    [
        (torch.bfloat16, 1, 24),
        (torch.bfloat16, 3, 5),
        (torch.float16, 1, 5),
        (torch.float32, 1, 24),
    ],
    ids=str,
)
@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_of_every_dtype(
    new_tokens: int, size: int, codec: str, dtype: torch.dtype, device: torch.device
) -> None:
    batch = a_batch(new_tokens, dtype, codec, size, SHORT)
    found = attend(batch, device=device)
    assert all(result.out.dtype == dtype for result in found)
    assert_same(batch, found)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("new_tokens", "window"), [(1, None), (1, 1), (1, 40), (2, None), (2, 1), (63, 40), (3, 1000)]
)
def test_agrees_with_dense_attention_in_float64(
    new_tokens: int, window: int | None, device: torch.device
) -> None:
    batch = a_batch(new_tokens)
    assert_same(batch, attend(batch, window, device), window)


@pytest.mark.parametrize(("new_tokens", "window"), [(1, None), (1, 40), (3, None), (3, 40)])
def test_log_weights_are_added_to_the_logits(
    new_tokens: int, window: int | None, device: torch.device
) -> None:
    batch = [
        dataclasses.replace(
            one,
            heads=[
                dataclasses.replace(head, log_weights=torch.rand(head.rows) * 4) if n % 2 else head
                for n, head in enumerate(one.heads)
            ],
        )
        for one in a_batch(new_tokens, rows=SHORT)
    ]
    assert_same(batch, attend(batch, window, device), window)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("slices", [1, 2, 5, 15])
def test_results_do_not_depend_on_the_number_of_slices(
    slices: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "slices_for", lambda *_: slices)
    batch = a_batch(1, rows=((0, 1, 20, 70), (3, 0, 40, 2)))
    assert_same(batch, attend(batch, device=device))


@pytest.mark.parametrize("new_tokens", [1, 2])
def test_a_batch_of_empty_heads_sees_only_itself(new_tokens: int, device: torch.device) -> None:
    batch = a_batch(new_tokens, rows=((0, 0), (0, 0)))
    assert_same(batch, attend(batch, device=device))


@pytest.mark.usefixtures("poisoned")
# int4 in bfloat16 multiplies numbers below the least normal one, here in the widest product
@pytest.mark.parametrize(
    ("window", "codec", "dtype"),
    [
        (None, "int8", torch.float32),
        (25, "int8", torch.float32),
        (None, "int4", torch.bfloat16),
    ],
    ids=str,
)
def test_more_queries_than_a_tile(
    window: int | None, codec: str, dtype: torch.dtype, device: torch.device
) -> None:
    batch = a_batch(33, dtype, codec, rows=((0, 1, 17, 40),))
    assert 33 * GROUP > kernel._MAX_QUERY_TILE
    assert_same(batch, attend(batch, window, device), window)


def test_logits_far_apart_agree_with_float64(device: torch.device) -> None:
    """Most rows of such a head weigh nothing at all, and the rest must still add up."""
    batch = [dataclasses.replace(one, q=one.q * 300) for one in a_batch(1, rows=SHORT)]
    for sequence, result in zip(batch, attend(batch, device=device), strict=True):
        # a logit of this size is itself only so exact in f32
        torch.testing.assert_close(
            result.out.double(), dense(sequence, None).out, atol=6e-4, rtol=1e-5
        )


@pytest.mark.parametrize(("new_tokens", "codec"), [(1, "int4"), (3, "model")])
def test_the_same_inputs_give_the_same_bits(
    new_tokens: int, codec: str, device: torch.device
) -> None:
    batch = a_batch(new_tokens, torch.bfloat16, codec, rows=((0, 1, 20, 33),))
    (first,), (again,) = attend(batch, device=device), attend(batch, device=device)
    assert torch.equal(first.out, again.out)
    for one, other in zip(first.row_attention, again.row_attention, strict=True):
        assert one is other is None or torch.equal(one, other)


def test_chunks_fed_in_parts_of_different_lengths(device: torch.device) -> None:
    """Two sequences are fed 3 and 1 tokens and then 4 and 4, each as one chunk in two parts."""
    counts = ((3, 4), (1, 4))
    batch = [a_sequence(rows, sum(c)) for rows, c in zip(SHORT, counts, strict=True)]
    heads = len(SHORT[0])
    shape = LayerShape(heads, heads * GROUP, SIZE, 60)
    pool = PagePool(
        (shape,), pages=80, page_rows=PAGE_ROWS, dtype=torch.float32, device=device, poison=True
    )
    blocks = []
    for sequence, cell in zip(batch, (2, 12), strict=True):
        pages = pool.open(FIRST, PageCount(30, 30))
        pages.load(0, a_layer(sequence.heads))
        blocks.append(RetentionChunk(pages, cell))
    staged, outs = pool.new_staged_rows(30), [[], []]
    for number in range(2):
        own = [c[number] for c in counts]
        first = [sum(c[:number]) for c in counts]
        pieces = [ChunkPart(b, n, ends=number == 1) for b, n in zip(blocks, own, strict=True)]
        step = BatchStep(staged, pieces, np.zeros(sum(own), np.uint8))
        q, k, v = (
            torch.cat(
                [
                    getattr(one, name)[:, at : at + n]
                    for one, at, n in zip(batch, first, own, strict=True)
                ],
                1,
            ).to(device)
            for name in ("q", "keys", "values")
        )
        out = step.attend(AttentionInput(0, q, k, v, SIZE**-0.5, 60)).cpu()
        for so_far, part in zip(outs, out.split(own), strict=True):
            so_far.append(part)
        if number == 0:
            step.decide()
    for place, (sequence, parts) in enumerate(zip(batch, outs, strict=True)):
        row_attention = iter(step._scratch.row_attention_of(place).cpu().split(_sizes(sequence)))
        result = Outcome(
            torch.cat(parts).transpose(0, 1),
            [next(row_attention) if head.rule.needs_scores else None for head in sequence.heads],
        )
        assert_same([sequence], [result], 60)


def _sizes(sequence: Fed) -> list[int]:
    new_tokens = sequence.q.shape[1]
    return [head.rows + new_tokens for head in sequence.heads if head.rule.needs_scores]


def test_row_ends_are_prefix_sums(device: torch.device) -> None:
    rows = torch.randint(0, 50, (400, 2, 3), dtype=torch.int32)
    ends = torch.empty(2, 1200, dtype=torch.int32, device=device)
    row_ends(rows.to(device), ends)
    expected = [rows[:, n].flatten().cumsum(0) for n in (0, 1)]
    assert torch.equal(ends.cpu(), torch.stack(expected).int())

"""The ragged attention kernels against dense attention in float64."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pytest
import torch

kernel = pytest.importorskip("kvstore.kernels.ragged_attention.kernel")

GROUP, HEADS, PAGE_ROWS, FIRST = 3, 4, 16, 300
LAYERS, LAYER, CELLS, PAGES, GAP = 2, 1, 200, 24, 10
# heads empty, one row, and sizes around pages, tiles and chunks
ROWS = ((0, 1, 63, 257), (64, 16, 0, 0))
SHORT = ((0, 1, 20, 70), (33, 16, 0, 0))
SCORED = (True, False, True, True)
# the result itself is rounded to 16 bits; of bfloat16 weights 16 bits are kept, of values up to 4
RELATIVE = {torch.float32: 1e-5, torch.bfloat16: 1 / 128, torch.float16: 1 / 1024}
ABSOLUTE = {torch.float32: 3e-6, torch.bfloat16: 4 * 2**-17, torch.float16: 3e-6}


@dataclasses.dataclass(frozen=True)
class Batch:
    """One layer of a batch in a pool, and the step's own rows; all else in the pool is NaN."""

    q: torch.Tensor
    new_keys: torch.Tensor
    new_values: torch.Tensor
    cells: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor
    log_weights: torch.Tensor
    pages: torch.Tensor
    marks: torch.Tensor
    rows: torch.Tensor
    slots: torch.Tensor
    lengths: torch.Tensor
    counts: tuple[tuple[int, ...], ...]

    @property
    def fed(self) -> int:
        return self.q.shape[2]

    def flat(self, table: torch.Tensor, b: int, h: int) -> torch.Tensor:
        """Where the rows of a head lie."""
        slot = torch.arange(self.counts[b][h])
        return table[self.slots[b], LAYER, h, slot // PAGE_ROWS].long() * PAGE_ROWS + (
            slot % PAGE_ROWS
        )


def a_batch(
    fed: int = 1,
    dtype: torch.dtype = torch.float32,
    counts: tuple[tuple[int, ...], ...] = ROWS,
    size: int = 24,
) -> Batch:
    """Sequences in slots out of order, on pages out of order."""
    sequences, heads = len(counts), len(counts[0])
    slots = (torch.randperm(sequences + 2)[:sequences]).int()
    tables = [table_of_pages(sequences + 2, heads) for _ in range(2)]
    pool_rows = tables[0].numel() * PAGE_ROWS
    keys, values = torch.full((2, pool_rows, size), math.nan).to(dtype)
    positions = torch.full((pool_rows,), -(2**31), dtype=torch.int32)
    log_weights = torch.full((pool_rows,), math.nan)
    rows = torch.zeros(sequences + 2, LAYERS, heads, dtype=torch.int32)
    new_keys, new_values = torch.full((2, LAYERS, heads, CELLS, size), math.nan).to(dtype)
    cells = torch.arange(sequences).int() * (fed + 3) + 2
    batch = Batch(
        torch.randn(sequences, fed, heads * GROUP, size).to(dtype).transpose(1, 2),
        new_keys,
        new_values,
        cells,
        keys,
        values,
        positions,
        log_weights,
        *tables,
        rows,
        slots,
        torch.arange(sequences) * 7 + FIRST,
        counts,
    )
    for b, of_sequence in enumerate(counts):
        own = slice(int(cells[b]), int(cells[b]) + fed)
        new_keys[LAYER, :, own] = torch.randn(heads, fed, size)
        new_values[LAYER, :, own] = torch.randn(heads, fed, size)
        for h, count in enumerate(of_sequence):
            rows[slots[b], LAYER, h] = count
            held, marked = batch.flat(tables[0], b, h), batch.flat(tables[1], b, h)
            keys[held], values[held] = torch.randn(2, count, size).to(dtype)
            positions[marked] = torch.randperm(FIRST)[:count].int()
            log_weights[marked] = torch.randn(count)
    return batch


def table_of_pages(sequences: int, heads: int) -> torch.Tensor:
    pages = torch.randperm(sequences * LAYERS * heads * PAGES).int()
    return pages.view(sequences, LAYERS, heads, PAGES)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """`out` `[B, HQ, m, D]` and what each scored head's rows received."""

    out: torch.Tensor
    received: dict[tuple[int, int], torch.Tensor]


def scored_heads(batch: Batch) -> list[tuple[int, int]]:
    return [(b, h) for b, row in enumerate(batch.counts) for h in range(len(row)) if SCORED[h]]


def attend(
    batch: Batch,
    device: torch.device,
    *,
    window: int | None = None,
    weighted: bool = False,
    chunks: int = 5,
    kv_heads: int = 0,
) -> Outcome:
    sequences, heads = len(batch.counts), batch.rows.shape[2]
    starts = torch.full((sequences, LAYERS, heads), -1)
    scored = torch.zeros(sequences, LAYERS, heads, dtype=torch.bool)
    total = GAP
    for b, h in scored_heads(batch):
        starts[b, LAYER, h], scored[b, LAYER, h] = total, True
        total += batch.counts[b][h] + batch.fed + GAP
    received = torch.full((total,), math.nan, device=device)
    here = {
        field.name: getattr(batch, field.name).to(device)
        for field in dataclasses.fields(batch)
        if field.name != "counts"
    }
    marked = window is not None or weighted
    held = sum(map(sum, batch.counts))
    group, size = batch.q.shape[1] // (kv_heads or heads), batch.q.shape[3]
    out = kernel.attend(
        *(here[name] for name in ("q", "new_keys", "new_values", "cells", "keys", "values")),
        here["pages"],
        here["rows"],
        here["slots"],
        kernel.line_ends(here["rows"], here["slots"]),
        LAYER,
        kernel.AttentionScratch.of(
            sequences, heads, group, batch.fed, size, device, row_bound=held, chunks=chunks
        ),
        kv_heads=kv_heads or heads,
        page_rows=PAGE_ROWS,
        scale=1 / math.sqrt(size),
        sliding_window=window,
        lengths=here["lengths"],
        marks=here["marks"] if marked else None,
        positions=here["positions"] if marked else None,
        log_weights=here["log_weights"] if weighted else None,
        starts=starts.to(device),
        scored=scored.to(device),
        received=received,
    )
    found, received = {}, received.cpu()
    for b, h in scored_heads(batch):
        start, entries = int(starts[b, LAYER, h]), batch.counts[b][h] + batch.fed
        found[b, h] = received[start : start + entries].clone()
        received[start : start + entries] = math.nan
    assert received.isnan().all(), "nothing is written beside a head's own entries"
    return Outcome(out.cpu(), found)


def dense(batch: Batch, *, window: int | None = None, weighted: bool = False) -> Outcome:
    """Attention in float64 over each head's rows under an explicit mask."""
    outs, received = torch.empty(batch.q.shape, dtype=torch.float64), {}
    for b, of_sequence in enumerate(batch.counts):
        own = batch.lengths[b] + torch.arange(batch.fed)
        cells = slice(int(batch.cells[b]), int(batch.cells[b]) + batch.fed)
        for h in range(len(of_sequence)):
            held, marked = batch.flat(batch.pages, b, h), batch.flat(batch.marks, b, h)
            keys = torch.cat((batch.keys[held], batch.new_keys[LAYER, h, cells])).double()
            values = torch.cat((batch.values[held], batch.new_values[LAYER, h, cells])).double()
            distance = own[:, None] - torch.cat((batch.positions[marked].long(), own))
            seen = (distance >= 0) & (distance < (window or 10**9))
            bonus = torch.zeros(len(keys), dtype=torch.float64)
            if weighted:
                bonus[: len(held)] = batch.log_weights[marked].double()
            queries = batch.q[b, h * GROUP : (h + 1) * GROUP].double()
            logits = queries @ keys.T / math.sqrt(keys.shape[1]) + bonus
            probabilities = logits.masked_fill(~seen, -torch.inf).softmax(-1)
            outs[b, h * GROUP : (h + 1) * GROUP] = probabilities @ values
            received[b, h] = probabilities.sum((0, 1)) / GROUP
    return Outcome(outs, {at: received[at] for at in scored_heads(batch)})


def assert_same(found: Outcome, expected: Outcome) -> None:
    dtype = found.out.dtype
    torch.testing.assert_close(
        found.out, expected.out.to(dtype), atol=ABSOLUTE[dtype], rtol=RELATIVE[dtype]
    )
    assert found.received.keys() == expected.received.keys()
    for at, share in found.received.items():
        torch.testing.assert_close(share.double(), expected.received[at], atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("fed", "window"), [(1, None), (1, 1), (1, 40), (2, 40)])
def test_agrees_with_dense_attention_in_float64(
    fed: int, window: int | None, device: torch.device
) -> None:
    batch = a_batch(fed)
    assert_same(attend(batch, device, window=window), dense(batch, window=window))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("dtype", "fed"), [(torch.bfloat16, 1), (torch.bfloat16, 5), (torch.float16, 2)]
)
def test_half_precision_rows_are_accumulated_in_f32(
    dtype: torch.dtype, fed: int, device: torch.device
) -> None:
    batch = a_batch(fed, dtype, SHORT, size=64)
    found = attend(batch, device)
    assert found.out.dtype == dtype
    assert_same(found, dense(batch))


@pytest.mark.parametrize(("fed", "window"), [(1, None), (3, 40)])
def test_log_weights_are_added_to_the_logits(
    fed: int, window: int | None, device: torch.device
) -> None:
    batch = a_batch(fed, counts=SHORT)
    assert_same(
        attend(batch, device, window=window, weighted=True),
        dense(batch, window=window, weighted=True),
    )


def test_heads_without_marks_have_no_log_weights(device: torch.device) -> None:
    batch = a_batch(counts=SHORT)
    unmarked = dataclasses.replace(batch, marks=torch.full_like(batch.marks, -1))
    assert_same(attend(unmarked, device, weighted=True), dense(batch))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("chunks", "counts"), [(1, SHORT), (2, SHORT), (4, SHORT), (15, ((3, 0, 40, 2),))]
)
def test_the_cut_into_chunks_does_not_show(
    chunks: int, counts: tuple[tuple[int, ...], ...], device: torch.device
) -> None:
    batch = a_batch(counts=counts)
    assert_same(attend(batch, device, chunks=chunks), dense(batch))


@pytest.mark.parametrize("fed", [1, 2])
def test_a_batch_of_empty_heads_sees_only_itself(fed: int, device: torch.device) -> None:
    batch = a_batch(fed, counts=((0, 0), (0, 0)))
    assert_same(attend(batch, device), dense(batch))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("window", [None, 25])
def test_more_queries_than_a_tile(window: int | None, device: torch.device) -> None:
    batch = a_batch(33, counts=((0, 1, 17, 40),))
    assert batch.fed * GROUP > kernel._MAX_QUERY_TILE
    assert_same(attend(batch, device, window=window), dense(batch, window=window))


def test_a_layer_with_fewer_heads_than_the_table(device: torch.device) -> None:
    batch = a_batch(2, counts=((20, 3, 0, 0), (5, 40, 0, 0)))
    few = dataclasses.replace(batch, q=batch.q[:, : 2 * GROUP])
    found, expected = attend(few, device, kv_heads=2), dense(batch)
    torch.testing.assert_close(
        found.out.double(), expected.out[:, : 2 * GROUP], atol=3e-6, rtol=1e-5
    )
    # absent heads of the table are not written to
    assert found.received[0, 2].isnan().all()
    torch.testing.assert_close(
        found.received[0, 0].double(), expected.received[0, 0], atol=1e-5, rtol=1e-5
    )


def test_logits_far_apart_agree_with_float64(device: torch.device) -> None:
    """Most rows of such a head weigh nothing at all, and the rest must still add up."""
    batch = a_batch(counts=SHORT)
    batch = dataclasses.replace(batch, q=batch.q * 300)
    found, expected = attend(batch, device), dense(batch)
    # a logit of this size is itself only so exact in f32
    torch.testing.assert_close(found.out.double(), expected.out, atol=6e-4, rtol=1e-5)


@pytest.mark.parametrize("fed", [1, 3])
def test_the_same_inputs_give_the_same_bits(fed: int, device: torch.device) -> None:
    batch = a_batch(fed, torch.bfloat16, ((0, 1, 20, 33),))
    first, again = attend(batch, device), attend(batch, device)
    assert torch.equal(first.out, again.out)
    assert all(torch.equal(share, again.received[at]) for at, share in first.received.items())


def test_line_ends_are_prefix_sums(device: torch.device) -> None:
    rows = torch.randint(0, 50, (400, 2, 3), dtype=torch.int32)
    slots = torch.randperm(400)[:390].int()
    ends = kernel.line_ends(rows.to(device), slots.to(device)).cpu()
    expected: Sequence[torch.Tensor] = [rows[slots.long(), n].flatten().cumsum(0) for n in (0, 1)]
    assert torch.equal(ends, torch.stack(list(expected)).int())

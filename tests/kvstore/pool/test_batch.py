"""Many sequences in one step end up as each would alone, by the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.attention_input import AttentionInput
from kvstore.cache import HeadRows, LayerShape, RaggedLayer
from kvstore.errors import PoolExhausted
from kvstore.kernels.paged_batch import PagedBatch
from kvstore.pool import BatchStep, PageCount, PagePool, SequencePages
from kvstore.rules import RetentionRule
from tests.kvstore.retention_strategies import rules

SIZE, PAGE_ROWS, PAGES = 4, 4, 800
# layers with different numbers of heads
SHAPES = (LayerShape(3, 6, SIZE), LayerShape(1, 2, SIZE), LayerShape(2, 2, SIZE))
HEADS = sum(shape.kv_heads for shape in SHAPES)


def a_pool() -> PagePool:
    return PagePool(SHAPES, pages=PAGES, page_rows=PAGE_ROWS, dtype=torch.float32, poison=True)


def a_sequence(pool: PagePool, length: int, head_rules: list[RetentionRule]) -> SequencePages:
    """Every second layer-head pair holds few of the tokens; the same for the same length."""
    generator = torch.Generator().manual_seed(length)
    sequence = pool.open(length, PageCount(200, 200))
    taken = iter(head_rules)
    for index, shape in enumerate(SHAPES):
        counts = [length // (1 + (head + index) % 2) for head in range(shape.kv_heads)]
        layer_rules = tuple(next(taken) for _ in range(shape.kv_heads))
        needed = list(zip(counts, layer_rules, strict=True))
        keys, values = torch.randn(2, sum(counts), SIZE, generator=generator)
        sequence.load(
            index,
            RaggedLayer(
                keys,
                values,
                torch.cat([torch.randperm(length, generator=generator)[:n] for n in counts]).int(),
                tuple(sum(counts[:n]) for n in range(len(counts) + 1)),
                layer_rules,
                (1.0,) * shape.kv_heads,
                torch.rand(sum(n for n, r in needed if r.needs_scores), generator=generator),
                torch.zeros(sum(n for n, r in needed if r.needs_flags), dtype=torch.uint8),
            ),
        )
    return sequence


def feed(batch: list[SequencePages], seeds: list[int], new_tokens: int) -> list[list[torch.Tensor]]:
    """A step whose inputs depend on each sequence's seed alone; outputs per sequence and layer."""
    classes = np.array([[seed % 3] * new_tokens for seed in seeds], np.uint8)
    step, outs = (
        BatchStep.whole(batch, classes, batch[0].pool.new_staged_rows(new_tokens * len(batch))),
        [],
    )
    randoms = [torch.Generator().manual_seed(seed) for seed in seeds]
    for index, shape in enumerate(SHAPES):
        q, k, v = (
            torch.cat([torch.randn(heads, new_tokens, SIZE, generator=one) for one in randoms], 1)
            for heads in (shape.query_heads, shape.kv_heads, shape.kv_heads)
        )
        outs.append(step.attend(AttentionInput(index, q, k, v, 0.5, None)))
    step.retain()
    return [
        [out[row * new_tokens : (row + 1) * new_tokens] for out in outs]
        for row in range(len(batch))
    ]


def by_position(head: HeadRows) -> list[torch.Tensor]:
    order = head.positions.argsort()
    columns = (head.keys, head.values, head.positions, head.scores)
    return [column[order] for column in columns if column is not None]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.lists(rules(), min_size=HEADS, max_size=HEADS)),
        min_size=1,
        max_size=4,
    ),
    st.lists(st.sampled_from([1, 1, 1, 5]), min_size=1, max_size=4),
)
def test_sequences_together_end_up_as_each_alone(
    sequences: list[tuple[int, list[RetentionRule]]], blocks: list[int]
) -> None:
    pool = a_pool()
    together = [a_sequence(pool, *one) for one in sequences]
    alone = [a_sequence(a_pool(), *one) for one in sequences]
    for number, new_tokens in enumerate(blocks):
        seeds = [100 * number + row for row in range(len(sequences))]
        outs = feed(together, seeds, new_tokens)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PagedBatch, "on_cpu_in_f32", False)
            single = [
                feed([one], [seed], new_tokens)[0] for one, seed in zip(alone, seeds, strict=True)
            ]
        for left, right in zip(outs, single, strict=True):
            for a, b in zip(left, right, strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    for left, right in zip(together, alone, strict=True):
        assert left.row_counts() == right.row_counts()
        for layer in range(len(SHAPES)):
            for a, b in zip(left.heads(layer), right.heads(layer), strict=True):
                for x, y in zip(by_position(a), by_position(b), strict=True):
                    torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-4)


def test_one_sequence_without_room_leaves_all_as_they_were() -> None:
    pool = a_pool()
    rich = a_sequence(pool, 8, [RetentionRule(full=True)] * HEADS)
    poor = a_sequence(pool, 8, [RetentionRule(full=True)] * HEADS)
    poor.reservation.trim_to(PageCount())
    before = rich.row_counts()
    with pytest.raises(PoolExhausted):
        feed([rich, poor], [1, 2], 1)
    assert (rich.length, rich.row_counts(), poor.row_counts()) == (8, before, before)
    feed([rich], [1], 1)
    assert rich.length == 9


def test_a_failed_forward_pass_changes_nothing() -> None:
    pool = a_pool()
    sequence = a_sequence(pool, 9, [RetentionRule(window=3)] * HEADS)
    before = [head.keys.clone() for layer in range(3) for head in sequence.heads(layer)]
    step = BatchStep.whole([sequence], np.zeros((1, 1), np.uint8), pool.new_staged_rows(1))
    step.attend(AttentionInput(0, torch.randn(6, 1, SIZE), *torch.randn(2, 3, 1, SIZE), 0.5, None))
    after = [head.keys for layer in range(3) for head in sequence.heads(layer)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert sequence.length == 9

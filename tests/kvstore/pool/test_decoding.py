"""Attention and retention over pages, against a list of rows per head."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st

from kvstore.attention_input import AttentionInput
from kvstore.cache import LayerShape, RaggedLayer
from kvstore.kernels.paged_batch import PagedBatch
from kvstore.pool import BatchStep, ChunkPart, PageCount, PagePool, RetentionChunk
from kvstore.rules import RetentionRule, ScoreUpdate, TokenClass
from tests.kvstore.pool.slow_head import Row, SlowHead
from tests.kvstore.retention_strategies import rules

HEADS, GROUP, SIZE, PAGE_ROWS = 2, 2, 4, 4
SCALE = 0.5


@pytest.fixture(scope="module", autouse=True, params=["compiled", "reference"])
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    """Everything here holds for the compiled kernels and for their reference."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "reference":
            patch.setattr(PagedBatch, "on_cpu_in_f32", False)
        yield


class Decoding:
    """One layer decoded twice over: in pages of NaN, and in lists of rows."""

    def __init__(
        self,
        pages: int,
        head_rules: tuple[RetentionRule, ...],
        prompt: int,
        seed: int,
        window: int | None = None,
    ) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.window = window
        self.length = prompt
        self.victims: list[int] = []
        self.slow = [
            SlowHead(rule, [row for row in self.rows(0, self.classes(prompt)) if self.coin()])
            for rule in head_rules
        ]
        for head in self.slow:
            for row in head.rows:
                row.score = self.random_score()
        shape = LayerShape(len(head_rules), len(head_rules) * GROUP, SIZE, window)
        self.pool = PagePool(
            (shape,), pages=pages, page_rows=PAGE_ROWS, dtype=torch.float32, poison=True
        )
        self.paged = self.pool.open(prompt, PageCount(pages, pages))
        self.paged.load(0, ragged_layer(self.slow))

    def coin(self) -> bool:
        return bool(torch.rand((), generator=self.random) < 0.7)

    def random_score(self) -> float:
        return float(torch.rand((), generator=self.random))

    def classes(self, tokens: int) -> list[int]:
        return [int(c) for c in torch.randint(-3, 4, (tokens,), generator=self.random).clamp(0)]

    def rows(self, first: int, classes: list[int]) -> list[Row]:
        vectors = torch.randn(2, len(classes), SIZE, generator=self.random)
        return [
            Row(first + n, vectors[0, n], vectors[1, n], flag) for n, flag in enumerate(classes)
        ]

    def feed(self, classes: list[int]) -> None:
        """One block through both, compared after attention and after retention."""
        first, new_tokens = self.length, len(classes)
        self.length += new_tokens
        rows = [self.rows(first, classes) for _ in self.slow]
        queries = torch.randn(len(self.slow) * GROUP, new_tokens, SIZE, generator=self.random)
        keys = torch.stack([torch.stack([row.key for row in head]) for head in rows])
        values = torch.stack([torch.stack([row.value for row in head]) for head in rows])
        outs = self.feed_paged(queries, keys, values, classes)
        for number, (head, new) in enumerate(zip(self.slow, rows, strict=True)):
            part = slice(number * GROUP, (number + 1) * GROUP)
            out, row_attention = head.attend(queries[part], new, SCALE, self.window)
            torch.testing.assert_close(outs[part].double(), out, atol=1e-5, rtol=1e-4)
            chosen = set(self.paged.heads(0)[number].positions.tolist())
            self.victims.append(head.retain(new, row_attention, self.length, chosen))
        self.compare()

    def feed_paged(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, classes: list[int]
    ) -> torch.Tensor:
        """`[HQ, m, D]`; the block arrives in pieces, which nobody may notice."""
        staged, block = self.pool.new_staged_rows(len(classes)), RetentionChunk(self.paged, 0)
        outs = []
        for first, last in itertools.pairwise(self.cuts(len(classes))):
            piece = ChunkPart(block, last - first, ends=last == len(classes))
            step = BatchStep(staged, [piece], np.array(classes[first:last], np.uint8))
            part = [rows[:, first:last] for rows in (queries, keys, values)]
            outs.append(step.attend(AttentionInput(0, *part, SCALE, self.window)))
            step.decide()
        step.commit([0])
        return torch.cat(outs).transpose(0, 1)

    def cuts(self, tokens: int) -> list[int]:
        """Return the places where a chunk is cut into parts; mostly none."""
        if tokens == 1 or self.coin():
            return [0, tokens]
        middle = int(torch.randint(1, tokens, (), generator=self.random))
        return [0, middle, tokens]

    def compare(self) -> None:
        for head, paged in zip(self.slow, self.paged.heads(0), strict=True):
            order = paged.positions.argsort()
            expected = [row.position for row in head.rows]
            assert paged.positions[order].tolist() == expected
            for index, row in zip(order.tolist(), head.rows, strict=True):
                assert torch.equal(paged.keys[index], row.key)
                assert torch.equal(paged.values[index], row.value)
                if paged.scores is not None:
                    assert float(paged.scores[index]) == pytest.approx(row.score, abs=1e-5)
                if paged.flags is not None:
                    assert int(paged.flags[index]) == row.flag
        held = sum(len(head.rows) for head in self.slow)
        pages = sum(-(-len(head.rows) // PAGE_ROWS) for head in self.slow)
        assert (self.pool.rows, self.pool.used_pages) == (held, pages)
        assert self.pool.slack_rows == pages * PAGE_ROWS - held


def ragged_layer(heads: list[SlowHead]) -> RaggedLayer:
    offsets, keys, values, positions, scores, flags = [0], [], [], [], [], []
    for head in heads:
        offsets.append(offsets[-1] + len(head.rows))
        keys += [row.key for row in head.rows]
        values += [row.value for row in head.rows]
        positions += [row.position for row in head.rows]
        scores += [row.score for row in head.rows if head.rule.needs_scores]
        flags += [row.flag for row in head.rows if head.rule.needs_flags]
    return RaggedLayer(
        torch.stack(keys) if keys else torch.empty(0, SIZE),
        torch.stack(values) if values else torch.empty(0, SIZE),
        torch.tensor(positions, dtype=torch.int32),
        tuple(offsets),
        tuple(head.rule for head in heads),
        (1.0,) * len(heads),
        torch.tensor(scores, dtype=torch.float32),
        torch.tensor(flags, dtype=torch.uint8),
    )


blocks = st.lists(st.integers(1, 20), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(rules(), min_size=1, max_size=HEADS),
    st.integers(0, 30),
    blocks,
    st.integers(0, 2**20),
)
def test_any_rule_agrees_with_a_list_of_rows(
    head_rules: list[RetentionRule], prompt: int, new_tokens: list[int], seed: int
) -> None:
    decoding = Decoding(120, tuple(head_rules), prompt, seed)
    for block in new_tokens:
        decoding.feed(decoding.classes(block))
    event(f"most victims of a step: {min(max(decoding.victims), 3)}")


@settings(max_examples=40, deadline=None)
@given(rules(), st.integers(0, 2**20))
def test_token_by_token_agrees_with_a_list_of_rows(rule: RetentionRule, seed: int) -> None:
    decoding = Decoding(60, (rule,), 12, seed)
    for _ in range(24):
        decoding.feed(decoding.classes(1))


@settings(max_examples=25, deadline=None)
@given(rules(), blocks, st.integers(0, 2**20))
def test_a_sliding_layer_agrees_with_a_list_of_rows(
    rule: RetentionRule, new_tokens: list[int], seed: int
) -> None:
    decoding = Decoding(120, (dataclasses.replace(rule, horizon=9),), 20, seed, window=9)
    for block in new_tokens:
        decoding.feed(decoding.classes(block))


@pytest.mark.parametrize(
    "rule",
    [
        RetentionRule(
            protected=TokenClass.SPECIAL,
            sinks=2,
            window=40,
            budget_ratio=0.3,
            score_update=ScoreUpdate.SUM,
        ),
        RetentionRule(horizon=100, budget_rows=70, budget_beyond=True, window=20),
        RetentionRule(full=True),
    ],
)
def test_a_block_of_256_tokens_agrees_with_a_list_of_rows(rule: RetentionRule) -> None:
    decoding = Decoding(300, (rule, RetentionRule(sinks=4, window=16)), 50, seed=7)
    decoding.feed(decoding.classes(256))
    decoding.feed(decoding.classes(3))


def test_one_token_can_evict_several_rows() -> None:
    """A row that leaves the window while it is not frequent goes beside one that lost its rank."""
    rule = RetentionRule(window=6, budget_rows=3, score_update=ScoreUpdate.DECAYED, score_decay=0.5)
    most = 0
    for seed in range(8):
        decoding = Decoding(40, (rule,), 20, seed)
        for _ in range(20):
            decoding.feed([0])
        # the first step only brings the loaded prompt under the rule
        most = max(most, *decoding.victims[1:])
    assert most >= 2

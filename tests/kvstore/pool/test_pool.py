from __future__ import annotations

import contextlib
import random
import threading

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvstore.attention_input import AttentionInput
from kvstore.cache import LayerShape, RaggedLayer
from kvstore.errors import InvalidParameter, PoolExhausted
from kvstore.pool import BatchStep, PageCount, PagePool, SequencePages, pages_bound
from kvstore.rules import FULL_RULE, RetentionRule, ScoreUpdate

SIZE, PAGE_ROWS, PAGES = 4, 4, 24
SHAPES = (LayerShape(2, 4, SIZE), LayerShape(1, 2, SIZE))
WINDOW = RetentionRule(sinks=1, window=3)
SCORED = RetentionRule(window=2, budget_rows=3, score_update=ScoreUpdate.SUM)


def a_pool(pages: int = PAGES) -> PagePool:
    return PagePool(
        SHAPES,
        pages=pages,
        metadata_pages=40,
        page_rows=PAGE_ROWS,
        dtype=torch.float32,
        poison=True,
    )


def promised(pages: int) -> PageCount:
    """Return a reservation with as many metadata pages as may be needed."""
    return PageCount(pages, min(pages, 40))


def a_layer(*counts: int, head_rule: RetentionRule = FULL_RULE) -> RaggedLayer:
    """The same for the same counts: what rows score decides which are evicted, and so pages."""
    rows, random = sum(counts), torch.Generator().manual_seed(sum(counts))
    return RaggedLayer(
        torch.randn(rows, SIZE, generator=random),
        torch.randn(rows, SIZE, generator=random),
        torch.cat([torch.arange(n) for n in counts]).int(),
        tuple(sum(counts[:n]) for n in range(len(counts) + 1)),
        (head_rule,) * len(counts),
        (1.0,) * len(counts),
        torch.rand(rows if head_rule.needs_scores else 0, generator=random),
        torch.empty(0, dtype=torch.uint8),
    )


def feed(sequence: SequencePages, tokens: int, seed: int = 0) -> None:
    """A block through every layer; the same keys and values for the same seed."""
    random = torch.Generator().manual_seed(seed)
    staged = sequence.pool.new_staged_rows(tokens)
    step = BatchStep.whole([sequence], np.zeros((1, tokens), np.uint8), staged)
    for index, shape in enumerate(sequence.shapes):
        keys, values = torch.randn(2, shape.kv_heads, tokens, SIZE, generator=random)
        queries = torch.randn(shape.query_heads, tokens, SIZE, generator=random)
        step.attend(AttentionInput(index, queries, keys, values, 1.0, None))
    step.retain()


def content(sequence: SequencePages) -> list[list[torch.Tensor]]:
    """Every head's rows and marks, by slot."""
    return [
        [c.clone() for c in (h.keys, h.values, h.positions, h.scores) if c is not None]
        for layer in range(len(SHAPES))
        for h in sequence.heads(layer)
    ]


def twin_of(sequence: SequencePages) -> SequencePages:
    """The same state in a pool of its own, where nothing is ever shared."""
    twin = a_pool(200).open(sequence.length, PageCount(200, 40))
    for index, layer in enumerate(sequence.export()):
        twin.load(index, layer)
    return twin


def require_same(one: SequencePages, other: SequencePages) -> None:
    for mine, theirs in zip(content(one), content(other), strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert torch.equal(a, b)


class Accounting(RuleBasedStateMachine):
    """Sequences come, fork, grow, shrink and go in any order; nothing leaks and none is harmed."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = a_pool()
        self.sequences: list[SequencePages] = []
        self.twins: list[SequencePages] = []

    @rule(
        tokens=st.integers(0, 12),
        room=st.integers(0, 20),
        head_rule=st.sampled_from([FULL_RULE, WINDOW, SCORED]),
    )
    def load(self, tokens: int, room: int, head_rule: RetentionRule) -> None:
        free = self.pool.free
        if room > min(free.rows, free.metadata):
            with pytest.raises(PoolExhausted):
                self.pool.open(tokens, PageCount(room, room))
            assert self.pool.free == free
            return
        sequence = self.pool.open(tokens, PageCount(room, room))
        try:
            sequence.load(0, a_layer(tokens, tokens // 2, head_rule=head_rule))
            sequence.load(1, a_layer(tokens, head_rule=head_rule))
        except PoolExhausted:
            sequence.release()
        else:
            self.sequences.append(sequence)
            self.twins.append(twin_of(sequence))

    @precondition(lambda self: bool(self.sequences))
    @rule(data=st.data(), tokens=st.integers(1, 6), seed=st.integers(0, 99))
    def feed(self, data: st.DataObject, tokens: int, seed: int) -> None:
        number = data.draw(st.integers(0, len(self.sequences) - 1))
        sequence = self.sequences[number]
        before = content(sequence)
        try:
            feed(sequence, tokens, seed)
        except PoolExhausted:
            after = content(sequence)
            assert all(torch.equal(a, b) for x, y in zip(before, after) for a, b in zip(x, y))  # noqa: B905
        else:
            feed(self.twins[number], tokens, seed)

    @precondition(lambda self: bool(self.sequences))
    @rule(data=st.data(), room=st.integers(0, 6))
    def fork(self, data: st.DataObject, room: int) -> None:
        number = data.draw(st.integers(0, len(self.sequences) - 1))
        used, free = self.pool.used_pages, self.pool.free
        try:
            child = self.sequences[number].fork()
        except PoolExhausted:
            assert self.pool.free == free
            return
        assert self.pool.used_pages == used
        with contextlib.suppress(PoolExhausted):
            child.reservation.ensure(PageCount(room, room))
        self.sequences.append(child)
        self.twins.append(twin_of(child))

    @precondition(lambda self: bool(self.sequences))
    @rule(data=st.data(), pages=st.integers(0, 20))
    def keep(self, data: st.DataObject, pages: int) -> None:
        sequence = data.draw(st.sampled_from(self.sequences))
        sequence.reservation.trim_to(PageCount(pages, pages))

    @precondition(lambda self: bool(self.sequences))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.sequences) - 1))
        sequence = self.sequences.pop(number)
        self.twins.pop(number)
        sequence.release()
        sequence.release()

    @invariant()
    def everything_adds_up(self) -> None:
        pool, held = self.pool, [s.reservation for s in self.sequences]
        assert pool.free_pages + pool.reserved_pages + pool.used_pages == PAGES
        pages = [set(r.rows._taken) for r in held]
        assert pool.used_pages == len(set().union(*pages))
        assert pool.used_metadata_pages == sum(r.used.metadata for r in held)
        assert pool.reserved_pages == sum(r.unused.rows for r in held)
        counts = [n for s in self.sequences for layer in s.row_counts() for n in layer]
        assert pool.rows == sum(counts)
        assert sum(map(len, pages)) == sum(-(-n // PAGE_ROWS) for n in counts)
        assert pool.slack_rows == sum(-n % PAGE_ROWS for n in counts)
        assert pool.sequences == len(held)

    @invariant()
    def no_sequence_is_harmed(self) -> None:
        for sequence, twin in zip(self.sequences, self.twins, strict=True):
            assert sequence.length == twin.length
            require_same(sequence, twin)

    def teardown(self) -> None:
        for sequence in self.sequences:
            sequence.release()
        pool = self.pool
        assert (pool.used_pages, pool.reserved_pages, pool.rows, pool.resident_bytes) == (0,) * 4
        assert pool.free == PageCount(PAGES, 40)
        # the debug fill reached every row that was given back
        assert torch.isnan(pool.storage.unquantized.keys.codes).all()
        assert torch.isnan(pool.storage.columns.scores).all()


TestAccounting = Accounting.TestCase
TestAccounting.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


def test_a_reservation_beyond_the_free_pages_takes_none() -> None:
    pool = a_pool(8)
    sequence = pool.open(0, promised(5))
    with pytest.raises(PoolExhausted) as refusal:
        pool.open(0, promised(4))
    assert (refusal.value.requested_pages, refusal.value.free_pages) == (4, 3)
    with pytest.raises(PoolExhausted):
        sequence.reservation.ensure(PageCount(6, 41))
    assert pool.free == PageCount(3, 35)
    sequence.release()
    assert pool.free_pages == 8


def test_a_load_or_block_without_room_changes_nothing() -> None:
    pool = a_pool()
    sequence = pool.open(4, promised(3))
    with pytest.raises(PoolExhausted):
        sequence.load(0, a_layer(9, 4))
    assert (pool.used_pages, pool.rows) == (0, 0)
    sequence.load(0, a_layer(4, 4))
    before = content(sequence)
    with pytest.raises(PoolExhausted):
        feed(sequence, 1)
    assert (sequence.length, pool.used_pages, pool.rows) == (4, 2, 8)
    assert sequence.row_counts() == ((4, 4), (0,))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(before, content(sequence), strict=True))


def test_a_layer_of_another_shape_or_dtype_is_refused() -> None:
    sequence = a_pool().open(4, promised(8))
    with pytest.raises(InvalidParameter, match=r"layers\[0\]"):
        sequence.load(0, a_layer(4))
    other = PagePool(SHAPES, pages=8, page_rows=PAGE_ROWS, dtype=torch.bfloat16)
    with pytest.raises(InvalidParameter, match="float32"):
        other.open(4, PageCount(8, 8)).load(1, a_layer(4))
    mixed = (LayerShape(1, 1, SIZE), LayerShape(1, 1, SIZE + 1))
    with pytest.raises(InvalidParameter, match="head sizes"):
        PagePool(mixed, pages=8, page_rows=PAGE_ROWS, dtype=torch.float32)


def test_bytes_count_pages_and_marks_where_the_rule_needs_them() -> None:
    pool = a_pool(10)
    row, mark = 2 * SIZE * 4, 4 + 4 + 1
    assert pool.capacity_bytes == PAGE_ROWS * (10 * row + 40 * mark)
    sequence = pool.open(5, promised(6))
    # the second head holds one of five positions, so that a slot says nothing of its position
    sequence.load(0, a_layer(5, 1))
    assert sequence.resident_bytes == pool.resident_bytes == PAGE_ROWS * (3 * row + mark)
    sequence.load(1, a_layer(2, head_rule=WINDOW))
    assert pool.resident_bytes == PAGE_ROWS * (4 * row + 2 * mark)
    assert sequence.dense_bytes == 3 * 5 * 2 * SIZE * 4


def test_the_dense_bound_is_enough_for_full_heads_and_no_more() -> None:
    bound = pages_bound(SHAPES, 13, PAGE_ROWS)
    pool = a_pool(bound.rows)
    sequence = pool.open(5, bound)
    sequence.load(0, a_layer(5, 5))
    sequence.load(1, a_layer(5))
    feed(sequence, 8)
    assert pool.used_pages == bound.rows == 12


def test_a_fork_copies_only_the_pages_that_are_written() -> None:
    pool = a_pool()
    sequence = pool.open(9, promised(24))
    sequence.load(0, a_layer(9, 9))
    sequence.load(1, a_layer(9))
    sequence.reservation.trim_to(PageCount(3, 3))
    child = sequence.fork()
    child.reservation.ensure(PageCount(3, 3))
    assert pool.used_pages == 9
    feed(child, 1)
    # each of the three heads had one row in its last page
    assert pool.used_pages == 12
    feed(sequence, 1)
    # whose copy is not needed: nobody else reads the old page any more
    assert pool.used_pages == 12
    sequence.release()
    assert pool.used_pages == 9
    assert child.row_counts() == ((10, 10), (10,))


def test_a_fork_scatters_its_metadata_over_free_pages() -> None:
    """The origin's metadata pages are consecutive, and the free ones are not."""
    pool = a_pool()
    origin = pool.open(12, promised(9))
    origin.load(1, a_layer(12, head_rule=SCORED))
    holes = [pool.open(4, promised(1)) for _ in range(6)]
    for hole in holes:
        hole.load(1, a_layer(4, head_rule=SCORED))
    origin.reservation.trim_to(PageCount())
    filler = pool.open(0, PageCount(0, pool.free.metadata))
    filler.reservation.metadata.take(filler.reservation.unused.metadata)
    for hole in holes[::2]:
        hole.release()
    origin_marks = origin.tables.metadata[1, 0, :3]
    assert origin_marks.tolist() == [0, 1, 2]
    fork = origin.fork()
    assert (np.diff(fork.tables.metadata[1, 0, :3]) > 1).all()
    require_same(fork, origin)


def test_no_more_sequences_than_there_are_tables() -> None:
    pool = PagePool(SHAPES, pages=8, page_rows=4, dtype=torch.float32, sequences=1)
    first = pool.open()
    with pytest.raises(PoolExhausted):
        pool.open(0, PageCount(2, 2))
    assert pool.free_pages == 8
    first.release()
    pool.open()


def test_threads_reserve_and_release_without_losing_a_page() -> None:
    pool = a_pool()
    failures: list[BaseException] = []

    def churn(seed: int) -> None:
        choice = random.Random(seed)
        try:
            for _ in range(60):
                try:
                    sequence = pool.open(4, promised(choice.randrange(1, 14)))
                except PoolExhausted:
                    continue
                if sequence.reservation.unused.rows >= 3:
                    sequence.load(0, a_layer(4, 4))
                    sequence.load(1, a_layer(4))
                    assert all(torch.isfinite(head.keys).all() for head in sequence.heads(0))
                sequence.release()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=churn, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert (pool.free_pages, pool.reserved_pages, pool.used_pages, pool.rows) == (PAGES, 0, 0, 0)

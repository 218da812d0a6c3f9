from __future__ import annotations

import random
import threading

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvstore.cache import LayerShape, RaggedLayer
from kvstore.errors import InvalidParameter, PoolExhausted
from kvstore.pool import BatchStep, PagePool, SequencePages, pages_bound
from kvstore.rules import FULL_RULE, RetentionRule

SIZE, PAGE_ROWS, PAGES = 4, 4, 24
SHAPES = (LayerShape(2, 4, SIZE), LayerShape(1, 2, SIZE))
WINDOW = RetentionRule(sinks=1, window=3)


def a_pool(pages: int = PAGES) -> PagePool:
    return PagePool(pages, PAGE_ROWS, SIZE, torch.float32, poison=True)


def a_layer(*counts: int, head_rule: RetentionRule = FULL_RULE) -> RaggedLayer:
    rows = sum(counts)
    return RaggedLayer(
        torch.randn(rows, SIZE),
        torch.randn(rows, SIZE),
        torch.cat([torch.arange(n) for n in counts]).int(),
        tuple(sum(counts[:n]) for n in range(len(counts) + 1)),
        (head_rule,) * len(counts),
        (1.0,) * len(counts),
        torch.empty(0),
        torch.empty(0, dtype=torch.uint8),
    )


def feed(sequence: SequencePages, tokens: int) -> None:
    """A block through every layer, without scores."""
    step = BatchStep([sequence], tokens)
    for index, shape in enumerate(sequence.shapes):
        keys = torch.randn(1, shape.kv_heads, tokens, SIZE)
        step.attend(index, torch.randn(1, shape.query_heads, tokens, SIZE), keys, keys, 1.0, None)
    step.retain(torch.zeros(1, tokens, dtype=torch.uint8))


class Accounting(RuleBasedStateMachine):
    """Sequences come, grow, shrink and go in any order; nothing leaks and nothing overlaps."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = a_pool()
        self.sequences: list[SequencePages] = []

    @rule(
        tokens=st.integers(0, 12),
        room=st.integers(0, 20),
        head_rule=st.sampled_from([FULL_RULE, WINDOW]),
    )
    def load(self, tokens: int, room: int, head_rule: RetentionRule) -> None:
        free = self.pool.free_pages
        if room > free:
            with pytest.raises(PoolExhausted) as refusal:
                self.pool.reserve(room)
            assert (refusal.value.requested_pages, refusal.value.free_pages) == (room, free)
            return
        reservation = self.pool.reserve(room)
        sequence = SequencePages(reservation, SHAPES, tokens)
        self.sequences.append(sequence)
        try:
            sequence.load(0, a_layer(tokens, tokens // 2, head_rule=head_rule))
            sequence.load(1, a_layer(tokens, head_rule=head_rule))
        except PoolExhausted:
            self.sequences.remove(sequence)
            sequence.release()

    @precondition(lambda self: bool(self.sequences))
    @rule(data=st.data(), tokens=st.integers(1, 6))
    def feed(self, data: st.DataObject, tokens: int) -> None:
        sequence = data.draw(st.sampled_from(self.sequences))
        try:
            feed(sequence, tokens)
        except PoolExhausted:
            sequence.release()
            self.sequences.remove(sequence)

    @precondition(lambda self: bool(self.sequences))
    @rule(data=st.data(), pages=st.integers(0, 20))
    def shrink(self, data: st.DataObject, pages: int) -> None:
        data.draw(st.sampled_from(self.sequences)).reservation.shrink(pages)

    @precondition(lambda self: bool(self.sequences))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.sequences))
        sequence.release()
        sequence.release()
        self.sequences.remove(sequence)

    @invariant()
    def everything_adds_up(self) -> None:
        pool, held = self.pool, [s.reservation for s in self.sequences]
        assert pool.free_pages + pool.reserved_pages + pool.used_pages == PAGES
        assert pool.used_pages == sum(r.used_pages for r in held)
        assert pool.reserved_pages == sum(r.unused_pages for r in held)
        counts = [n for s in self.sequences for layer in s.row_counts() for n in layer]
        assert pool.rows == sum(counts)
        assert pool.used_pages == sum(-(-n // PAGE_ROWS) for n in counts)
        assert pool.resident_bytes == sum(s.resident_bytes for s in self.sequences)

    @invariant()
    def no_row_is_lost_or_shared(self) -> None:
        for sequence in self.sequences:
            for layer in range(len(SHAPES)):
                for head in sequence.heads(layer):
                    assert torch.isfinite(head.keys).all()
                    assert torch.isfinite(head.values).all()
                    assert len(set(head.positions.tolist())) == head.rows

    def teardown(self) -> None:
        for sequence in self.sequences:
            sequence.release()
        pool = self.pool
        assert (pool.used_pages, pool.reserved_pages, pool.rows, pool.resident_bytes) == (0,) * 4
        assert pool.free_pages == PAGES
        # the debug fill reached every row that was given back
        assert torch.isnan(pool._storage.keys).all()


TestAccounting = Accounting.TestCase
TestAccounting.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


def test_a_reservation_beyond_what_is_free_claims_nothing() -> None:
    pool = a_pool(8)
    with pool.reserve(5):
        with pytest.raises(PoolExhausted):
            pool.reserve(4)
        assert pool.free_pages == 3
    assert pool.free_pages == 8


def test_a_load_or_block_without_room_changes_nothing() -> None:
    pool = a_pool()
    sequence = SequencePages(pool.reserve(3), SHAPES, 4)
    with pytest.raises(PoolExhausted):
        sequence.load(0, a_layer(9, 4))
    assert (pool.used_pages, pool.rows) == (0, 0)
    sequence.load(0, a_layer(4, 4))
    before = [head.keys.clone() for head in sequence.heads(0)]
    with pytest.raises(PoolExhausted):
        feed(sequence, 1)
    assert (sequence.length, pool.used_pages, pool.rows) == (4, 2, 8)
    assert sequence.row_counts() == ((4, 4), (0,))
    after = [head.keys for head in sequence.heads(0)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_layer_of_another_shape_or_dtype_is_refused() -> None:
    sequence = SequencePages(a_pool().reserve(8), SHAPES, 4)
    with pytest.raises(InvalidParameter, match=r"layers\[0\]"):
        sequence.load(0, a_layer(4))
    other = PagePool(8, PAGE_ROWS, SIZE, torch.bfloat16)
    with pytest.raises(InvalidParameter, match="float32"):
        SequencePages(other.reserve(8), SHAPES, 4).load(1, a_layer(4))
    with pytest.raises(InvalidParameter, match="head_size"):
        SequencePages(a_pool().reserve(0), (LayerShape(1, 1, SIZE + 1),))


def test_pages_that_follow_one_another_are_read_without_a_copy() -> None:
    pool = a_pool()
    sequence = SequencePages(pool.reserve(8), SHAPES, 10)
    sequence.load(0, a_layer(10, 3))
    storage = pool._storage.keys.untyped_storage().data_ptr()
    assert [head.keys.untyped_storage().data_ptr() for head in sequence.heads(0)] == [storage] * 2


def test_bytes_count_pages_and_metadata() -> None:
    pool = a_pool(10)
    row = 2 * SIZE * 4 + 4 + 4 + 1
    assert pool.capacity_bytes == 10 * PAGE_ROWS * row
    sequence = SequencePages(pool.reserve(6), SHAPES, 5)
    sequence.load(0, a_layer(5, 1))
    assert sequence.resident_bytes == pool.resident_bytes == 3 * PAGE_ROWS * row
    assert sequence.dense_bytes == 3 * 5 * 2 * SIZE * 4


def test_a_growing_claim_takes_only_what_is_free() -> None:
    pool = a_pool(8)
    reservation = pool.reserve(5)
    reservation.grow(7)
    with pytest.raises(PoolExhausted):
        reservation.grow(9)
    assert (reservation.pages, pool.free_pages) == (7, 1)


def test_the_dense_bound_is_enough_for_full_heads_and_no_more() -> None:
    pages = pages_bound(SHAPES, 13, PAGE_ROWS)
    pool = a_pool(pages)
    sequence = SequencePages(pool.reserve(pages), SHAPES, 5)
    sequence.load(0, a_layer(5, 5))
    sequence.load(1, a_layer(5))
    feed(sequence, 8)
    assert pool.used_pages == pages == 12


def test_threads_reserve_and_release_without_losing_a_page() -> None:
    pool = a_pool()
    failures: list[BaseException] = []

    def churn(seed: int) -> None:
        choice = random.Random(seed)
        try:
            for _ in range(60):
                try:
                    reservation = pool.reserve(choice.randrange(1, 14))
                except PoolExhausted:
                    continue
                with reservation:
                    sequence = SequencePages(reservation, SHAPES, 4)
                    if reservation.pages >= 3:
                        sequence.load(0, a_layer(4, 4))
                        sequence.load(1, a_layer(4))
                        assert all(torch.isfinite(head.keys).all() for head in sequence.heads(0))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=churn, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert (pool.free_pages, pool.reserved_pages, pool.used_pages, pool.rows) == (PAGES, 0, 0, 0)

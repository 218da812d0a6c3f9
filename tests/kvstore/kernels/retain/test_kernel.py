"""The retain kernel against the rule's definition, row by row."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.retention import keep_mask
from kvstore.row_codecs import RowCodec
from kvstore.rule_table import rule_from_record, rule_to_record, rule_words
from kvstore.rules import FULL_RULE, RetentionRule, ScoreUpdate, TokenClass
from tests.kvstore.retention_strategies import rules

pytest.importorskip("triton")

from kvstore.kernels.retain import kernel
from tests.kvstore.kernels.retain import device_pool
from tests.kvstore.kernels.retain.device_pool import DevicePool, NewRows, Row

H2O = RetentionRule(window=20, budget_rows=30, budget_beyond=True, score_update=ScoreUpdate.SUM)
FASTGEN = RetentionRule(
    protected=TokenClass.SPECIAL,
    window=16,
    budget_ratio=0.1,
    score_update=ScoreUpdate.DECAYED,
    score_decay=0.5,
)
SLIDING = RetentionRule(full=True, horizon=64)
# heads empty, one row, and sizes around pages and the tile of 1,024 rows
SIZES = (0, 1, 15, 16, 63, 257)


def expected_rows(pool: DevicePool, new: NewRows, at: tuple[int, int, int]) -> dict[int, Row]:
    """Return the rows that the head should hold after the step, by position."""
    b, new_tokens = at[0], new.new_tokens
    rule, length = rule_from_record(pool.rules[at]), pool.lengths[b]
    flags = new.flags[int(new.staging_slots[b]) :].tolist()
    arrivals = [
        (length + n, dataclasses.replace(row, flag=flags[n]))
        for n, (_, row) in enumerate(appended(pool, new, at))
    ]
    rows = pool.held(at) + arrivals
    scores = torch.tensor([row.score for _, row in rows])
    if pool.scored(at):
        if rule.score_update is ScoreUpdate.DECAYED:
            scores *= rule.score_decay**new_tokens
        if rule.score_update is not ScoreUpdate.NONE:
            scores += new.row_attention[at]
    stays = keep_mask(
        rule,
        torch.tensor([position for position, _ in rows]),
        scores,
        torch.tensor([row.flag for _, row in rows], dtype=torch.uint8),
        length + new_tokens,
    )
    return {
        position: dataclasses.replace(row, score=float(score))
        for (position, row), score, kept in zip(rows, scores, stays, strict=True)
        if kept
    }


def check_step(pool: DevicePool, new_tokens: int) -> None:
    """One step: contents by position, slots that must not move, and every page accounted for."""
    new, census = NewRows.random(pool, new_tokens), pool.page_census()
    heads = [
        (b, layer, h)
        for b in range(len(pool.lengths))
        for layer, count in enumerate(pool.kv_heads)
        for h in range(count)
    ]
    before = {at: pool.held(at) for at in heads}
    expected = {at: expected_rows(pool, new, at) for at in heads if pool.bounded(at)}
    pool.step(new)
    for at in heads:
        found = pool.held(at)
        if at in expected:
            assert len(found) == len(expected[at])
            assert dict(found) == expected[at]
            assert_stayers_stay(before[at], found)
        else:
            assert found == before[at] + appended(pool, new, at)
    assert pool.page_census() == census
    assert not int(pool.free_pages.exhausted)
    assert not int(pool.free_marks.exhausted)


def assert_stayers_stay(before: list[tuple[int, Row]], found: list[tuple[int, Row]]) -> None:
    """Only rows beyond the slots now in use change their slot."""
    kept = dict(found)
    for (position, _), (now, _) in zip(before, found, strict=False):
        assert position == now or position not in kept


def appended(pool: DevicePool, new: NewRows, at: tuple[int, int, int]) -> list[tuple[int, Row]]:
    b, layer, h = at
    own = slice(int(new.staging_slots[b]), int(new.staging_slots[b]) + new.new_tokens)
    keys = pool.as_held(new.keys[layer, h, own], values=False)
    values = pool.as_held(new.values[layer, h, own], values=True)
    return [(-1, Row(key, value)) for key, value in zip(keys, values, strict=True)]


def a_pool(
    counts: tuple[int, ...],
    rule: RetentionRule,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    codec: str = "model",
) -> DevicePool:
    spelled = RowCodec.parse(codec)
    return DevicePool([[counts]], [[[rule] * len(counts)]], [300], device, dtype, spelled)


RULES = pytest.mark.parametrize(
    "rule", [FULL_RULE, H2O, FASTGEN, SLIDING], ids=["full", "h2o", "fastgen", "sliding"]
)


@RULES
def test_a_head_holds_what_its_rule_keeps(rule: RetentionRule, device: torch.device) -> None:
    pool = a_pool(SIZES, rule, device)
    # the first step finds many victims, the second few
    for new_tokens in (5, 1):
        check_step(pool, new_tokens)


# marks are read four at a time where a page has whole fours of them
@pytest.mark.parametrize("metadata_page_rows", [8, 6])
@RULES
def test_heads_of_several_tiles(
    rule: RetentionRule,
    metadata_page_rows: int,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel, "ROW_TILE", 16)
    monkeypatch.setattr(device_pool, "MARK_ROWS", metadata_page_rows)
    pool = a_pool((31, 80), rule, device)
    for new_tokens in (3, 2):
        check_step(pool, new_tokens)


@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_any_rule_in_any_head(device: torch.device, data: st.DataObject) -> None:
    """Several sequences and layers, one with fewer heads, every field of the rules in play."""
    torch.manual_seed(data.draw(st.integers(0, 99)))
    shapes = (2, 1)
    counts = [
        [[data.draw(st.sampled_from([0, 1, 9, 17, 33])) for _ in range(h)] for h in shapes]
        for _ in range(2)
    ]
    chosen = [[[data.draw(rules()) for _ in range(h)] for h in shapes] for _ in range(2)]
    pool = DevicePool(counts, chosen, [40, 63], device)
    for new_tokens in data.draw(st.sampled_from([(1, 1), (3, 1), (9,)])):
        check_step(pool, new_tokens)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_of_every_dtype_are_moved_bit_by_bit(dtype: torch.dtype, device: torch.device) -> None:
    check_step(a_pool((0, 40), SLIDING, device, dtype), 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("codec", ["fp8", "int8", "int4", "int8/int4", "model/fp8"])
def test_new_rows_are_coded(codec: str, dtype: torch.dtype, device: torch.device) -> None:
    check_step(a_pool((0, 40), SLIDING, device, dtype, codec), 3)
    check_step(a_pool((63,), FULL_RULE, device, dtype, codec), 2)


def test_of_equal_scores_the_latest_rows_are_dropped(device: torch.device) -> None:
    """Many that lose, neighbours in every way: where a search that is one off shows."""
    budgets = [RetentionRule(budget_rows=rows) for rows in (1, 12, 21, 22, 23)]
    pool = DevicePool([[[33] * 5]], [[budgets]], [33], device)
    pool.scores.fill_(0.5)
    check_step(pool, 1)


def test_all_rows_can_be_dropped_at_once(device: torch.device) -> None:
    pool = a_pool((33, 1), RetentionRule(), device)
    check_step(pool, 2)
    assert pool.rows.sum() == 0


def test_a_full_queue_of_pages_wraps_around(device: torch.device) -> None:
    pool = a_pool((16, 32), SLIDING, device)
    check_step(pool, 40)
    ring = pool.free_pages.ring.numel()
    pool.free_pages.ring.copy_(pool.free_pages.ring.roll(ring // 2))
    pool.free_pages.taken.add_(ring // 2)
    pool.free_pages.returned.add_(ring // 2)
    for _ in range(2):
        check_step(pool, 40)


def test_a_head_without_a_free_page_does_not_change(device: torch.device) -> None:
    pool = a_pool((16, 15), FULL_RULE, device)
    pool.free_pages.taken.copy_(pool.free_pages.returned)
    place = (0, 0, 0)
    before = pool.held(place)
    pool.step(NewRows.random(pool, 1))
    assert int(pool.free_pages.exhausted) == 1
    assert pool.held(place) == before
    # its neighbour needed none
    assert int(pool.rows[0, 0, 1]) == 16


def test_the_same_inputs_give_the_same_bits(device: torch.device) -> None:
    held = []
    for _ in range(2):
        torch.manual_seed(5)
        pool = a_pool((63, 130), FASTGEN, device)
        pool.step(NewRows.random(pool, 2))
        held.append([pool.held((0, 0, h)) for h in range(2)])
    assert held[0] == held[1]


@given(rule=rules())
def test_rules_convert_to_words_and_back(rule: RetentionRule) -> None:
    table = rule_to_record(rule)[None].copy()
    words = rule_words(table)
    assert words.shape == (1, table.dtype.itemsize // 8)
    assert rule_from_record(words.view(table.dtype)[0, 0]) == rule

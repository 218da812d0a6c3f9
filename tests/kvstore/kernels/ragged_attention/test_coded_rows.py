"""Attention straight from coded rows, against float64 attention over the same rows decoded."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kvstore.attention_input import AttentionInput
from kvstore.cache import LayerShape, RaggedLayer
from kvstore.pool import BatchStep, PageCount, PagePool, SequencePages
from kvstore.row_codecs import KeyValueLayout, RowCodec, decode_rows, encode_rows
from kvstore.rules import FULL_RULE, RetentionRule, ScoreUpdate

SCORED = RetentionRule(window=4, budget_rows=60, score_update=ScoreUpdate.SUM)
RULES, GROUP, FIRST, PAGE_ROWS = (SCORED, FULL_RULE, SCORED), 3, 300, 4
ROWS = (0, 63, 257)
CODECS = ("model", "fp8", "int8", "int4", "int8/int4", "model/fp8", "int4/model")
SCALE = 0.3


def a_layer(codec: str, size: int, seed: int) -> RaggedLayer:
    source, total = torch.Generator().manual_seed(seed), sum(ROWS)
    layout = KeyValueLayout(RowCodec.parse(codec), size, torch.float32)
    keys, values = torch.randn(2, total, size, generator=source)
    # a channel that outweighs the others, as keys have them
    keys[:, 0] += 8
    positions = [torch.randperm(FIRST, generator=source)[:n].sort().values for n in ROWS]
    return RaggedLayer(
        encode_rows(keys, layout.keys),
        encode_rows(values, layout.values),
        torch.cat(positions).int(),
        tuple(np.cumsum((0, *ROWS)).tolist()),
        RULES,
        (1.0,) * len(ROWS),
        torch.rand(ROWS[0] + ROWS[2], generator=source),
        torch.empty(0, dtype=torch.uint8),
        layout=None if layout.unquantized else layout,
    )


def a_pool(size: int) -> PagePool:
    shape = LayerShape(len(ROWS), len(ROWS) * GROUP, size)
    return PagePool((shape,), pages=900, page_rows=PAGE_ROWS, dtype=torch.float32, poison=True)


def opened(pool: PagePool, codec: str, seed: int) -> SequencePages:
    size = pool.shapes[0].head_size
    pages = pool.open(FIRST, PageCount(120, 120), RowCodec.parse(codec))
    pages.load(0, a_layer(codec, size, seed))
    return pages


def fed_rows(size: int, tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(1000 + seed)
    q = torch.randn(len(ROWS) * GROUP, tokens, size, generator=source)
    k, v = torch.randn(2, len(ROWS), tokens, size, generator=source)
    return q, k, v


def dense(pages: SequencePages, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """`[n, HQ, D]` in float64 over the rows that the pages hold, decoded, and causally the fed."""
    outs, tokens = [], q.shape[1]
    for number, coded in enumerate(pages.heads(0)):
        head = coded.decoded()
        keys = torch.cat((head.keys, k[number])).double()
        values = torch.cat((head.values, v[number])).double()
        hidden = torch.arange(len(keys)) - head.rows > torch.arange(tokens)[:, None]
        for query in q[number * GROUP : (number + 1) * GROUP].double():
            logits = (query @ keys.T * SCALE).masked_fill(hidden, -torch.inf)
            outs.append(logits.softmax(-1) @ values)
    return torch.stack(outs, 1)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("size", [8, 5, 64])
def test_sequences_of_all_codecs_attend_together_to_what_they_hold(size: int, tokens: int) -> None:
    check_steps(size, tokens, steps=3)


@pytest.mark.usefixtures("interpreted")
def test_sequences_of_all_codecs_attend_together_on_triton() -> None:
    check_steps(8, 1, steps=1)


def check_steps(size: int, tokens: int, steps: int) -> None:
    pool = a_pool(size)
    batch = [opened(pool, codec, seed) for seed, codec in enumerate(CODECS)]
    for step_number in range(steps):
        seeds = [10 * step_number + n for n in range(len(batch))]
        given = [fed_rows(size, tokens, seed) for seed in seeds]
        expected = [dense(one, *rows) for one, rows in zip(batch, given, strict=True)]
        classes = np.zeros((len(batch), tokens), np.uint8)
        step = BatchStep.whole(batch, classes, pool.new_staged_rows(classes.size))
        q, k, v = (torch.cat(rows, 1) for rows in zip(*given, strict=True))
        out = step.attend(AttentionInput(0, q, k, v, SCALE, None)).view(
            len(batch), tokens, -1, size
        )
        for got, wanted in zip(out, expected, strict=True):
            assert torch.allclose(got.double(), wanted, atol=2e-5, rtol=1e-4)
        step.retain()


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("codec", CODECS)
def test_retained_rows_are_coded_and_all_others_keep_their_bytes(codec: str) -> None:
    size, pool = 8, a_pool(8)
    pages = opened(pool, codec, 3)
    before = {h: by_position(pages, h) for h in range(len(ROWS))}
    q, k, v = fed_rows(size, 5, 7)
    step = BatchStep.whole([pages], np.zeros((1, 5), np.uint8), pool.new_staged_rows(5))
    step.attend(AttentionInput(0, q, k, v, SCALE, None))
    step.retain()
    layout = pages.row_pages.layout
    for head in range(len(ROWS)):
        for position, (key, value) in by_position(pages, head).items():
            if position >= FIRST:
                wanted = k[head, position - FIRST], v[head, position - FIRST]
                for stored, exact, part in zip(
                    (key, value), wanted, (layout.keys, layout.values), strict=True
                ):
                    assert torch.allclose(
                        decode_rows(stored, part),
                        decode_rows(encode_rows(exact, part), part),
                        atol=0.5 if part.rotated else 1e-6,
                    )
            else:
                assert torch.equal(key, before[head][position][0])
                assert torch.equal(value, before[head][position][1])


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("codec", ["fp8", "int4", "int8/int4"])
def test_forks_share_coded_pages_and_exports_come_back_bit_by_bit(codec: str) -> None:
    pool = a_pool(8)
    origin = opened(pool, codec, 1)
    used = pool.used_pages
    fork = origin.fork()
    assert pool.used_pages == used
    fork.reservation.ensure(PageCount(40, 40))
    rows = fed_rows(8, 1, 1)
    before = [by_position(origin, h) for h in range(len(ROWS))]
    step = BatchStep.whole([fork], np.zeros((1, 1), np.uint8), pool.new_staged_rows(1))
    step.attend(AttentionInput(0, *rows, SCALE, None))
    step.retain()
    for head, held in enumerate(before):
        for position, (key, value) in by_position(origin, head).items():
            assert torch.equal(key, held[position][0])
            assert torch.equal(value, held[position][1])
    (layer,) = fork.export()
    back = pool.open(fork.length, PageCount(200, 200), fork.codec)
    back.load(0, layer)
    for ours, theirs in zip(back.heads(0), fork.heads(0), strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)
    for sequence in (origin, fork, back):
        sequence.release()
    assert (pool.used_pages, pool.resident_bytes) == (0, 0)


def test_coded_rows_take_fewer_pages_of_the_same_bytes() -> None:
    pool = a_pool(64)
    plain, coded = (opened(pool, codec, 1) for codec in ("model", "int4"))
    # 36 bytes a row and not 256, in pages of four plain rows
    assert coded.row_pages.page_rows == 4 * 2 * 256 // 72
    rows = [math.ceil(n / coded.row_pages.page_rows) for n in ROWS]
    assert coded.reservation.used.rows == sum(rows)
    assert coded.reservation.used.metadata == plain.reservation.used.metadata
    assert coded.resident_bytes < 0.3 * plain.resident_bytes


def by_position(pages: SequencePages, head: int) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    rows = pages.heads(0)[head]
    return {
        position: (key, value)
        for position, key, value in zip(
            rows.positions.tolist(), rows.keys, rows.values, strict=True
        )
    }

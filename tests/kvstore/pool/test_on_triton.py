"""A pool whose kernels are Triton's does what it does with those of the CPU."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from kvstore.kernels.paged_batch import PagedBatch
from kvstore.pool import PageCount
from kvstore.rules import FULL_RULE, RetentionRule, ScoreUpdate, TokenClass
from tests.kvstore.pool.test_batch import HEADS, SHAPES, a_pool, a_sequence, by_position, feed

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() or importlib.util.find_spec("triton") is None,
    reason="the interpreter is off",
)

RULES = [
    RetentionRule(window=6, budget_rows=5, budget_beyond=True, score_update=ScoreUpdate.SUM),
    FULL_RULE,
    RetentionRule(protected=TokenClass.SPECIAL, sinks=2, window=3),
    RetentionRule(full=True, horizon=9),
    RetentionRule(budget_ratio=0.3, score_update=ScoreUpdate.DECAYED, score_decay=0.5),
    RetentionRule(),
]


def run() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Run steps of two sequences, one a fork of the other; return outputs and rows held."""
    pool = a_pool()
    batch = [a_sequence(pool, length, RULES) for length in (0, 9, 23)]
    child = batch[2].fork()
    child.reservation.ensure(PageCount(60, 60))
    batch.append(child)
    outs: list[torch.Tensor] = []
    for number, new_tokens in enumerate((1, 3, 1)):
        seeds = [10 * number + n for n in range(len(batch))]
        outs += [out for of_one in feed(batch, seeds, new_tokens) for out in of_one]
    held = [
        part
        for sequence in batch
        for layer in range(len(SHAPES))
        for head in sequence.heads(layer)
        for part in by_position(head)
    ]
    for sequence in batch:
        sequence.release()
    assert (pool.used_pages, pool.used_metadata_pages) == (0, 0)
    return outs, held


@pytest.mark.usefixtures("sanitized")
def test_the_same_steps_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(RULES) == HEADS
    expected = run()
    monkeypatch.setattr(PagedBatch, "on_triton", True)
    for found, wanted in zip(run(), expected, strict=True):
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-5)

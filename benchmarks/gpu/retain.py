"""Retention of all layers, sequences and heads, of mixed rules: every token, and every eighth."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from benchmarks.figures import Figure
from benchmarks.gpu.figures import Figures
from benchmarks.gpu.head_lengths import head_lengths
from benchmarks.gpu.pool import Pool, fill
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.timing import Timer
from kvstore.kernels.device_batch import DeviceScratch
from kvstore.kernels.retain.free_pages import FreePages
from kvstore.kernels.retain.kernel import retain
from kvstore.rule_table import full_rules, may_evict, needs_scores, rule_to_record, rule_words
from kvstore.rules import RetentionRule, ScoreUpdate, TokenClass

RETENTION_CHUNK_TOKENS = 8
_KEPT_RATIO = 0.2
# every tenth head keeps everything, as retrieval heads do; the others are of coverage's two kinds
_FULL_EVERY = 10


def measure(sizes: Sizes, timer: Timer) -> Figures:
    heads = f"{sizes.layers * sizes.sequences * sizes.kv_heads:,} heads"
    block = _seconds(sizes, timer, RETENTION_CHUNK_TOKENS) / RETENTION_CHUNK_TOKENS
    against = f"a token of {heads}, rules applied to {RETENTION_CHUNK_TOKENS} at once"
    yield "retain_seconds", Figure(block, "seconds", against, 60e-6)
    each = _seconds(sizes, timer, 1)
    yield "retain_seconds_each", Figure(each, "seconds", f"a token of {heads}, one by one")


def _seconds(sizes: Sizes, timer: Timer, tokens: int) -> float:
    pool, once = blocks(sizes, timer.device, tokens, timer.calls)
    seconds = timer.seconds(once)
    pool.check()
    return seconds


def step(sizes: Sizes, device: torch.device, tokens: int) -> Callable[[], None]:
    """One block of tokens; see `blocks`."""
    return blocks(sizes, device, tokens, 1)[1]


def blocks(
    sizes: Sizes, device: torch.device, tokens: int, calls: int
) -> tuple[Pool, Callable[[], None]]:
    """Return a pool and what applies its heads' rules to a block of tokens, so many times."""
    shape = (sizes.sequences, sizes.layers, sizes.kv_heads)
    heads = sizes.sequences * sizes.layers * sizes.kv_heads
    counts = head_lengths(heads, _KEPT_RATIO * sizes.context, most=sizes.context)
    rows = counts.view(shape).to(device)
    rules = full_rules(shape)
    for number, (place, count) in enumerate(zip(_places(shape), counts.tolist(), strict=True)):
        rules[place] = rule_to_record(_rule(number, count))
    growth = calls * tokens
    # what heads that keep everything grow by, and a page for each of the others
    spare = heads + -(-heads // _FULL_EVERY) * -(-growth // sizes.page_rows)
    pool = fill(rows, sizes, spare_pages=spare, growth_rows=growth)
    entries = pool.batch.pages.shape[3] * sizes.page_rows + tokens
    starts = torch.arange(heads, device=device).view(shape) * entries
    has_metadata = torch.from_numpy(may_evict(rules)).to(device)
    new = torch.randn(2, sizes.layers, sizes.kv_heads, sizes.sequences * tokens, sizes.head_size)
    new_keys, new_values = new.to(device, sizes.dtype)
    batch = dataclasses.replace(
        pool.batch,
        new_keys=new_keys,
        new_values=new_values,
        flags=torch.zeros(sizes.sequences * tokens, dtype=torch.uint8, device=device),
        staging_slots=pool.batch.staging_slots * tokens,
        counts=pool.batch.counts * tokens,
        positions=_latest_positions(pool, sizes),
        scores=torch.rand(pool.row_count, device=device),
        metadata_flags=torch.zeros(pool.row_count, dtype=torch.uint8, device=device),
        metadata=pool.batch.pages.clone(),
        has_metadata=has_metadata,
        rules=torch.from_numpy(rule_words(rules)).to(device),
    )
    scratch = DeviceScratch(
        torch.where(has_metadata, starts, -1),
        torch.from_numpy(needs_scores(rules)).to(device),
        torch.rand(heads * entries, device=device),
        torch.empty(heads * entries, dtype=torch.uint8, device=device),
        (True,) * sizes.layers,
    )
    free_marks = FreePages(*(each.clone() for each in _tensors(pool.free)))

    def once() -> None:
        retain(batch, scratch, pool.free, free_marks)
        batch.lengths.add_(tokens)

    return pool, once


def _latest_positions(pool: Pool, sizes: Sizes) -> torch.Tensor:
    """Each head holds the last rows there were: so every step finds one victim, or none."""
    positions = torch.zeros(pool.row_count, dtype=torch.int32, device=pool.rows.device)
    by_page = positions.view(-1, sizes.page_rows)
    in_page = torch.arange(sizes.page_rows, dtype=torch.int32, device=pool.rows.device)
    for number, pages in enumerate(pool.batch.pages.unbind(-1)):
        held = pages >= 0
        first = sizes.context - pool.rows[held] + number * sizes.page_rows
        by_page[pages[held].long()] = first[:, None] + in_page
    return positions


def _tensors(free: FreePages) -> tuple[torch.Tensor, ...]:
    return free.ring, free.taken, free.returned, free.exhausted


def _places(shape: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    return [
        (b, layer, h) for b in range(shape[0]) for layer in range(shape[1]) for h in range(shape[2])
    ]


def _rule(number: int, rows: int) -> RetentionRule:
    if number % _FULL_EVERY == 0:
        return RetentionRule(full=True)
    if number % 2:
        return RetentionRule(window=rows, sinks=4, protected=TokenClass.SPECIAL)
    return RetentionRule(
        window=rows // 2,
        sinks=4,
        budget_rows=max(1, rows - rows // 2),
        budget_beyond=True,
        score_update=ScoreUpdate.SUM,
    )

"""Sequences of random rows in the pages of one pool, and dense attention in float64 over them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch

from kvstore.cache import HeadRows, LayerShape, RaggedLayer
from kvstore.kernels.ragged_attention import ragged_attention
from kvstore.pool import BatchStep, PageCount, PagePool
from kvstore.row_codecs import MODEL_ROWS, KeyValueLayout, RowCodec, decode_rows, encode_rows
from kvstore.rules import FULL_RULE, RetentionRule, ScoreUpdate

SCORED = RetentionRule(budget_rows=4, score_update=ScoreUpdate.SUM)
GROUP, SIZE, PAGE_ROWS, FIRST = 3, 8, 16, 300
# a head empty, and sizes around the widths that vectors, tiles and pages have
ROWS = ((0, 1, 63, 257), (64, 16, 0, 0))
RULES = (SCORED, FULL_RULE, SCORED, SCORED)


@dataclasses.dataclass(frozen=True)
class Fed:
    """One sequence's queries and new rows, and the rows its heads hold."""

    q: torch.Tensor
    heads: list[HeadRows]
    keys: torch.Tensor
    values: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Outcome:
    out: torch.Tensor
    row_attention: list[torch.Tensor | None]


def a_sequence(
    rows: Sequence[int],
    new_tokens: int,
    dtype: torch.dtype = torch.float32,
    codec: str = "model",
    size: int = SIZE,
) -> Fed:
    generator = torch.Generator().manual_seed(new_tokens + sum(rows))
    layout = KeyValueLayout(RowCodec.parse(codec), size, dtype)
    heads = []
    for count, rule in zip(rows, RULES, strict=False):
        positions = torch.randperm(FIRST, generator=generator)[:count].int()
        keys, values = torch.randn(2, count, size, generator=generator).to(dtype)
        head = HeadRows(
            rule,
            encode_rows(keys, layout.keys),
            encode_rows(values, layout.values),
            positions,
            layout=None if layout.unquantized else layout,
        )
        heads.append(head)
    q = torch.randn(len(rows) * GROUP, new_tokens, size, generator=generator).to(dtype)
    new_keys, new_values = torch.randn(2, len(rows), new_tokens, size, generator=generator).to(
        dtype
    )
    return Fed(q, heads, new_keys, new_values)


def a_batch(
    new_tokens: int,
    dtype: torch.dtype = torch.float32,
    codec: str = "model",
    size: int = SIZE,
    rows: Sequence[Sequence[int]] = ROWS,
) -> list[Fed]:
    return [a_sequence(counts, new_tokens, dtype, codec, size) for counts in rows]


def dense(sequence: Fed, window: int | None) -> Outcome:
    """Attention in float64 over each head's rows under an explicit mask.

    Rows of a codec that rotates stay rotated, and so are queries and fed rows taken to be.
    """
    new_tokens = sequence.q.shape[1]
    own = torch.arange(FIRST, FIRST + new_tokens)
    outs, row_attention = [], []
    for number, head in enumerate(sequence.heads):
        positions = torch.cat((head.positions.long(), own))
        held_keys, held_values = head.keys, head.values
        if head.layout is not None:
            held_keys = decode_rows(held_keys, head.layout.keys, keep_rotated=True)
            held_values = decode_rows(held_values, head.layout.values, keep_rotated=True)
        keys = torch.cat((held_keys.double(), sequence.keys[number].double()))
        values = torch.cat((held_values.double(), sequence.values[number].double()))
        distance = own[:, None] - positions
        seen = (distance >= 0) & (distance < (window or 10**9))
        total = torch.zeros(len(positions), dtype=torch.float64)
        for query in sequence.q[number * GROUP : (number + 1) * GROUP].double():
            logits = query @ keys.T / math.sqrt(sequence.q.shape[2])
            if head.log_weights is not None:
                logits[:, : head.rows] += head.log_weights
            logits.masked_fill_(~seen, -torch.inf)
            probabilities = logits.softmax(-1)
            outs.append(probabilities @ values)
            total += probabilities.sum(0) / GROUP
        row_attention.append(total if head.rule.needs_scores else None)
    return Outcome(torch.stack(outs), row_attention)


def attend(
    batch: list[Fed], window: int | None = None, device: torch.device | str = "cpu"
) -> list[Outcome]:
    """All sequences together, out of the pages of one pool; its second layer is theirs."""
    new_tokens, size = batch[0].q.shape[1], batch[0].q.shape[2]
    heads = len(batch[0].heads)
    shape = LayerShape(heads, heads * GROUP, size, window)
    pool = PagePool(
        (LayerShape(heads + 1, heads + 1, size), shape),
        pages=80,
        page_rows=PAGE_ROWS,
        dtype=batch[0].q.dtype,
        device=device,
        poison=True,
    )
    layout = batch[0].heads[0].layout
    pages = [
        pool.open(FIRST, PageCount(30, 30), layout.codec if layout else MODEL_ROWS) for _ in batch
    ]
    for sequence, held in zip(batch, pages, strict=True):
        held.load(1, a_layer(sequence.heads))
    classes = np.zeros((len(batch), new_tokens), np.uint8)
    step = BatchStep.whole(pages, classes, pool.new_staged_rows(classes.size))
    q, k, v = (
        torch.cat([getattr(one, name) for one in batch], 1).to(device)
        for name in ("q", "keys", "values")
    )
    (part,) = step._groups
    part.batch.staged.put(1, part.staging_slots, k, v)
    flat = ragged_attention(
        q.transpose(0, 1),
        part.batch,
        1,
        part.scratch,
        scale=1 / math.sqrt(size),
        sliding_window=window,
    ).cpu()
    outs = flat.unflatten(0, (len(batch), new_tokens)).transpose(1, 2)
    scratch = step._scratch
    return [
        Outcome(
            out,
            [
                scratch.row_attention[start : start + head.rows + new_tokens].cpu()
                if head.rule.needs_scores
                else None
                for head, start in zip(sequence.heads, scratch.starts[row, 1], strict=False)
            ],
        )
        for row, (out, sequence) in enumerate(zip(outs, batch, strict=True))
    ]


def a_layer(heads: list[HeadRows]) -> RaggedLayer:
    offsets = [0]
    for head in heads:
        offsets.append(offsets[-1] + head.rows)
    return RaggedLayer(
        torch.cat([head.keys for head in heads]),
        torch.cat([head.values for head in heads]),
        torch.cat([head.positions for head in heads]),
        tuple(offsets),
        tuple(head.rule for head in heads),
        (1.0,) * len(heads),
        torch.zeros(sum(head.rows for head in heads if head.rule.needs_scores)),
        torch.empty(0, dtype=torch.uint8),
        torch.cat([torch.empty(0), *(h.log_weights for h in heads if h.log_weights is not None)]),
        tuple(head.log_weights is not None for head in heads),
        layout=heads[0].layout,
    )

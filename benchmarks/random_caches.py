"""Caches of random rows with the shape of real ones, in our pages and in the peer's tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import DynamicCache

from kvstore.cache import LayerShape, RaggedLayer
from kvstore.pool import PagePool, SequencePages, pages_bound
from kvstore.rules import FULL_RULE, RetentionRule, ScoreUpdate
from services.runtime.model.served_model import ServedModel

_PAGE_ROWS = 16
_SINKS, _WINDOW, _FLOOR_ROWS = 4, 64, 64
# what heads keep relative to the mean: most keep little, a few nearly everything
_SKEW = (0.15, 0.25, 0.35, 0.5, 0.6, 0.8, 1.0, 1.25, 1.8, 3.3)


def full_rules(shapes: Sequence[LayerShape], tokens: int) -> list[list[tuple[int, RetentionRule]]]:
    """Every head keeps every token: rows and rule, per layer and head."""
    return [[(tokens, FULL_RULE)] * shape.kv_heads for shape in shapes]


def coverage_rules(
    shapes: Sequence[LayerShape], tokens: int, ratio: float
) -> list[list[tuple[int, RetentionRule]]]:
    """Heads of very different sizes that keep `ratio` of the tokens in the mean.

    Each has the rule that the coverage policy writes: sinks, a window, and a budget of rows of
    highest score beyond it.
    """
    heads = sum(shape.kv_heads for shape in shapes)
    sizes = iter([int(ratio * tokens * _SKEW[n % len(_SKEW)]) for n in range(heads)])
    return [[_covered(next(sizes)) for _ in range(shape.kv_heads)] for shape in shapes]


def _covered(rows: int) -> tuple[int, RetentionRule]:
    rule = RetentionRule(
        sinks=_SINKS,
        window=_WINDOW,
        floor_rows=_FLOOR_ROWS,
        budget_rows=max(1, rows - _SINKS - _WINDOW),
        budget_beyond=True,
        score_update=ScoreUpdate.SUM,
    )
    return _SINKS + _WINDOW + rule.budget_rows, rule


def open_random(
    served: ServedModel,
    heads: Sequence[Sequence[tuple[int, RetentionRule]]],
    batch: int,
    tokens: int,
    more_tokens: int,
) -> list[SequencePages]:
    """B sequences in one pool with these heads, and room for `more_tokens`."""
    bound = pages_bound(served.shapes, tokens + more_tokens, _PAGE_ROWS)
    pool = PagePool(
        served.shapes, pages=batch * bound.rows, page_rows=_PAGE_ROWS, dtype=served.dtype
    )
    size = served.shapes[0].head_size
    sequences = []
    for _ in range(batch):
        pages = pool.open(tokens, bound)
        for index, layer in enumerate(heads):
            pages.load(index, random_layer(layer, tokens, size, served.dtype))
        sequences.append(pages)
    return sequences


def random_layer(
    heads: Sequence[tuple[int, RetentionRule]], tokens: int, size: int, dtype: torch.dtype
) -> RaggedLayer:
    """A layer of random rows with these heads, each D = `size` wide."""
    counts = [rows for rows, _ in heads]
    scored = sum(rows for rows, rule in heads if rule.needs_scores)
    return RaggedLayer(
        torch.randn(sum(counts), size, dtype=dtype),
        torch.randn(sum(counts), size, dtype=dtype),
        torch.cat([_kept_positions(rows, tokens) for rows in counts]),
        tuple(sum(counts[:n]) for n in range(len(counts) + 1)),
        tuple(rule for _, rule in heads),
        (1.0,) * len(heads),
        torch.rand(scored),
        torch.empty(0, dtype=torch.uint8),
    )


def _kept_positions(rows: int, tokens: int) -> torch.Tensor:
    """The first and the last tokens, and as many between as are missing; int32, ascending."""
    window = torch.arange(tokens - min(_WINDOW, rows), tokens)
    rest = rows - len(window)
    first = torch.arange(min(_SINKS, rest))
    between = torch.linspace(_SINKS, tokens - _WINDOW - 1, max(0, rest - _SINKS)).floor()
    return torch.cat((first, between.long(), window)).int()


def random_dynamic_cache(served: ServedModel, batch: int, tokens: int) -> DynamicCache:
    """transformers' own cache, filled alike."""
    cache = DynamicCache()
    for index, shape in enumerate(served.shapes):
        size = (batch, shape.kv_heads, tokens, shape.head_size)
        cache.update(
            torch.randn(size, dtype=served.dtype), torch.randn(size, dtype=served.dtype), index
        )
    return cache

"""Rows spread over layers or heads by shares, for policies that do not treat them alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kvstore.plans import CacheFacts, LayerFacts, PromptFacts
from kvstore.policies.budget import visible_rows
from kvstore.policies.budgeted import Budgeted
from kvstore.rules import RATIO_ROUNDING

# halvings of the scale; 53 exhaust a float's mantissa
_STEPS = 60


def spread_rows(
    policy: Budgeted, shares: Sequence[float], prompt: PromptFacts, cache: CacheFacts
) -> list[int]:
    """Rows for each head, layer by layer, in proportion to `shares`, all of them above 0.

    No head gets more than its layer sees or less than the floor, and what one cannot hold goes to
    the others: all heads but the retrieval heads together keep as many rows as with equal parts.
    """
    most = [visible_rows(prompt, shape) for shape in cache.shapes]
    least = [min(policy.floor_rows, visible) for visible in most]
    heads = [
        shape.kv_heads - len(LayerFacts(index, cache).uncompressed_heads)
        for index, shape in enumerate(cache.shapes)
    ]
    total = sum(
        of_layer * policy.rows(prompt, LayerFacts(index, cache))
        for index, of_layer in enumerate(heads)
    )
    return in_proportion(shares, heads, least, most, total)


def in_proportion(
    shares: Sequence[float],
    heads: Sequence[int],
    least: Sequence[int],
    most: Sequence[int],
    total: int,
) -> list[int]:
    """Rows for each of the `heads` of a part, in proportion to the parts' `shares`, above 0.

    None gets fewer than its `least` or more than its `most`, and what one cannot hold goes to the
    others, up to `total` rows in all heads.
    """

    def rows(scale: float) -> list[int]:
        wanted = (math.floor(scale * share + RATIO_ROUNDING) for share in shares)
        return [min(m, max(w, lo)) for w, lo, m in zip(wanted, least, most, strict=True)]

    low, high = 0.0, max(most) / min(shares)
    if _sum(heads, rows(high)) <= total:
        return rows(high)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if _sum(heads, rows(middle)) <= total else (low, middle)
    return rows(low)


def _sum(heads: Sequence[int], rows: Sequence[int]) -> int:
    return sum(a * b for a, b in zip(heads, rows, strict=True))

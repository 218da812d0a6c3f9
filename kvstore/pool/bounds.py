"""Bounds of the rows and pages that a sequence may come to hold."""

from __future__ import annotations

from collections.abc import Sequence

from kvstore.cache import LayerShape
from kvstore.pool.reservation import PageCount
from kvstore.rules import RetentionRule, TokenClass


def pages_for(rows: int, page_rows: int) -> int:
    return -(-rows // page_rows)


def pages_bound(
    shapes: Sequence[LayerShape], tokens: int, page_rows: int, coded_page_rows: int | None = None
) -> PageCount:
    """Pages that suffice for `tokens` tokens whatever the rules: every head keeps every row.

    `coded_page_rows`: what a row page holds, where that is not `page_rows`.
    """
    heads = sum(shape.kv_heads for shape in shapes)
    rows = pages_for(tokens, coded_page_rows or page_rows)
    return PageCount(heads * rows, heads * pages_for(tokens, page_rows))


def rows_bound(rule: RetentionRule, rows: int, length: int, final_length: int) -> int:
    """The most rows a head holds at any block's end up to `final_length` tokens.

    It holds `rows` now, at `length` tokens. Proof, by what can be true of any later block's end,
    at n tokens, length < n <= final_length:

    - What was evicted never returns, so at most the rows of now and the n − length tokens fed
      since are held. For a full head, and for one that protects a class (any token may belong to
      it), this is all that can be said.
    - Otherwise each row held is kept by a clause: at most `sinks` rows by the first positions (and
      no more than are held, once all of these have been seen),
      `recent_rows` by the window, `generated_window` by the window after the prompt and
      `budget(n)` by score, which does not fall as n grows.
    - With a horizon all rows held have different positions among the last `horizon` tokens.

    The rows of now are held until the first block ends, hence the outer maximum. A block needs no
    room beyond its end's rows: what it leaves is decided before anything is written.
    """
    most = rows + final_length - length
    if not rule.full and rule.protected == TokenClass.NONE:
        sinks = min(rule.sinks, rows) if length >= rule.sinks else rule.sinks
        clauses = sinks + rule.recent_rows + rule.generated_window
        most = min(most, clauses + rule.budget(final_length))
    if rule.horizon:
        most = min(most, rule.horizon)
    return max(rows, most)

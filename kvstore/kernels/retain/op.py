"""What becomes of a head's rows after a fed block: contract and dispatch."""

from __future__ import annotations

import torch

from kvstore.kernels.retain import reference
from kvstore.kernels.retain.moves import RetainMoves, RowMarks
from kvstore.rules import RetentionRule


def retain_moves(
    rule: RetentionRule,
    held: RowMarks,
    fed: RowMarks,
    received: torch.Tensor | None,
    length: int,
) -> RetainMoves:
    """Decide for each of the R held and m fed rows: stay, append, take a victim's slot, or go.

    `received` f32 `[R + m]` is the attention probability each row received in this block, None
    where the rule needs no scores; `length` counts the tokens seen, the block's included. Scores
    first grow by the rule's `score_update`: `sum` adds what was received; `decayed` multiplies
    held scores by `score_decay` once per fed token, then adds; `none` leaves them. A new row
    starts from 0. Then `keep_mask` is applied to all rows together.
    """
    if rule.full and not rule.horizon:
        # never a victim: no row needs to be looked at
        return reference.append(held.rows, fed.rows, None)
    # one Triton launch for all layers, sequences and heads dispatches above this level
    return reference.decide(rule, held, fed, received, length)

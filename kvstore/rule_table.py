"""Retention rules as rows of an array, the form in which the pool keeps them and kernels read them.

A field of `RetentionRule` is a field here under the same name; enumerations are their number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kvstore.rules import FULL_RULE, RetentionRule, ScoreUpdate, TokenClass

RULE_DTYPE = np.dtype(
    [
        ("horizon", np.int64),
        ("sinks", np.int64),
        ("window", np.int64),
        ("floor_rows", np.int64),
        ("generated_from", np.int64),
        ("generated_window", np.int64),
        ("budget_rows", np.int64),
        ("budget_ratio", np.float64),
        ("score_decay", np.float64),
        ("full", np.bool_),
        ("budget_beyond", np.bool_),
        ("protected", np.uint8),
        ("score_update", np.uint8),
    ],
    align=True,
)

_UPDATES = tuple(ScoreUpdate)
SCORE_SUM = _UPDATES.index(ScoreUpdate.SUM)
SCORE_DECAYED = _UPDATES.index(ScoreUpdate.DECAYED)


def full_rules(shape: Sequence[int]) -> NDArray[np.void]:
    """A table of that shape whose heads keep everything."""
    table = np.empty(shape, RULE_DTYPE)
    table[...] = rule_to_record(FULL_RULE)
    return table


def rule_to_record(rule: RetentionRule) -> NDArray[np.void]:
    """A rule as one entry, `[]`."""
    entry = np.zeros((), RULE_DTYPE)
    for name in RULE_DTYPE.fields or ():
        value = getattr(rule, name)
        entry[name] = _UPDATES.index(value) if name == "score_update" else value
    return entry


def rule_from_record(entry: NDArray[np.void]) -> RetentionRule:
    """The rule that `encode` made an entry of."""
    values = dict(zip(RULE_DTYPE.names or (), entry.item(), strict=True))
    values["protected"] = TokenClass(values["protected"])
    values["score_update"] = _UPDATES[values["score_update"]]
    return RetentionRule(**values)


def rule_words(rules: NDArray[np.void]) -> NDArray[np.int64]:
    """A table as kernels on a device read it, int64 `[..., RULE_DTYPE.itemsize // 8]`."""
    words: NDArray[np.int64] = np.ascontiguousarray(rules)[..., None].view(np.int64)
    return words


def needs_scores(rules: NDArray[np.void]) -> NDArray[np.bool_]:
    """`RetentionRule.needs_scores` of every entry."""
    budget = (rules["budget_rows"] > 0) | (rules["budget_ratio"] > 0)
    needed: NDArray[np.bool_] = budget & ~rules["full"]
    return needed


def may_evict(rules: NDArray[np.void]) -> NDArray[np.bool_]:
    """Return the entries whose rules can drop a row."""
    bounded: NDArray[np.bool_] = ~rules["full"] | (rules["horizon"] > 0)
    return bounded

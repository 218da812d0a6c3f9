"""Retention rules: what becomes of a head's rows, as data that travels with the cache."""

from __future__ import annotations

import dataclasses
import enum
import math


class TokenClass(enum.IntFlag):
    """Classes a rule may protect; one bit each, stored as uint8 per row where a rule needs it."""

    NONE = 0
    SPECIAL = 1
    PUNCTUATION = 2


class ScoreUpdate(enum.StrEnum):
    """Update of a row's score by attention probabilities, the mean over the G query heads."""

    NONE = "none"
    SUM = "sum"
    DECAYED = "decayed"


# float products such as 0.1 * 30 land a hair above the whole number that is meant
RATIO_ROUNDING = 1e-9


def share_of(ratio: float, tokens: int) -> int:
    """`ceil(ratio · tokens)`, immune to the last bit of the product."""
    return math.ceil(ratio * tokens - RATIO_ROUNDING)


@dataclasses.dataclass(frozen=True, slots=True)
class RetentionRule:
    """The rule that decides, at the end of every retention chunk, which rows of a KV head stay.

    With `length` tokens seen so far, a row at original position `p` stays if any of these holds:
    `full`; its class is in `protected`; `p < sinks`; it is recent, `length − 1 − p < recent_rows`;
    it was fed after the prompt (`p >= generated_from`) and `length − 1 − p < generated_window`;
    or it is among the `budget(length)` rows of highest score (ties: the earlier position wins),
    taken of all rows held, or with `budget_beyond` only of rows no other clause keeps.
    In a layer with a sliding window of its own (`horizon` > 0) a row no closer than that goes all
    the same: no later query can see it.
    What was evicted never returns. Source: FastGen (arXiv 2310.01801), algorithm 2; the window
    with a budget beyond it is the finer form that `coverage` uses.
    """

    full: bool = False
    horizon: int = 0
    protected: TokenClass = TokenClass.NONE
    sinks: int = 0
    window: int = 0
    floor_rows: int = 0
    generated_from: int = 0
    generated_window: int = 0
    budget_rows: int = 0
    budget_ratio: float = 0.0
    budget_beyond: bool = False
    score_update: ScoreUpdate = ScoreUpdate.NONE
    score_decay: float = 1.0

    @property
    def recent_rows(self) -> int:
        """The window, widened so that the head never holds fewer than `floor_rows` rows."""
        return max(self.window, self.floor_rows - self.sinks)

    @property
    def has_budget(self) -> bool:
        return not self.full and (self.budget_rows > 0 or self.budget_ratio > 0)

    @property
    def needs_scores(self) -> bool:
        return self.has_budget

    @property
    def needs_flags(self) -> bool:
        return not self.full and self.protected != TokenClass.NONE

    @property
    def head_class(self) -> str:
        """A bounded label for people and metrics: `full`, or the parts joined with `+`.

        `chosen`: rows that were picked once, and what has come after them.
        """
        if self.full:
            return "full"
        parts = {
            "special": TokenClass.SPECIAL in self.protected,
            "punctuation": TokenClass.PUNCTUATION in self.protected,
            "frequent": self.has_budget,
            "local": self.window > 0,
        }
        named = "+".join(name for name, present in parts.items() if present)
        return named or ("chosen" if self.generated_window else "floor")

    def budget(self, length: int) -> int:
        """Rows of highest score that stay when `length` tokens have been seen."""
        if not self.has_budget:
            return 0
        return max(self.budget_rows, share_of(self.budget_ratio, length))


FULL_RULE = RetentionRule(full=True)

"""Figures as lines that say what they mean: pass or fail by target, and as predicted or not."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from benchmarks.gpu.predictions import PREDICTED


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A figure, as a part's file has it. Times of toy shapes are not `judged`."""

    name: str
    value: float
    unit: str
    against: str
    target: float | None
    at_least: bool
    judged: bool

    @property
    def verdict(self) -> str:
        if self.target is None or not self.judged:
            return "-"
        met = self.value >= self.target if self.at_least else self.value <= self.target
        return "pass" if met else "FAIL"

    @property
    def bound(self) -> str:
        if self.target is None:
            return "-"
        return f"{'>=' if self.at_least else '<='} {self.target:.4g}"

    @property
    def foreseen(self) -> str:
        """The predicted range, and on which side of it the figure lies."""
        if self.name not in PREDICTED:
            return "-"
        predicted = PREDICTED[self.name]
        if not self.judged:
            return predicted.told
        if self.value < predicted.low:
            return f"{predicted.told}: below"
        return f"{predicted.told}: {'above' if self.value > predicted.high else 'as predicted'}"


def lines(rows: Sequence[Row]) -> list[str]:
    """Return a table of text and the number of failures."""
    cells = [("figure", "value", "unit", "target", "", "predicted", "against")]
    cells += [
        (
            row.name,
            f"{row.value:.4g}",
            row.unit,
            row.bound,
            row.verdict,
            row.foreseen,
            row.against,
        )
        for row in rows
    ]
    widths = [max(len(line[n]) for line in cells) for n in range(len(cells[0]) - 1)]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(line[:-1], widths, strict=True)).rstrip()
        + f"  {line[-1]}"
        for line in cells
    ]
    verdicts = [row.verdict for row in rows]
    counts = (verdicts.count(word) for word in ("pass", "FAIL", "-"))
    passed, failed, without = counts
    return [*table, "", f"targets: {passed} passed, {failed} failed; {without} figures without one"]

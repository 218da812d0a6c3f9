"""Measurements brought together: means of each part's groups, and the figures by name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from services.evaluation.cases import Case, RetrievalCase
from services.evaluation.cell_log import CellLog, Values
from services.evaluation.run import cell_key
from services.evaluation.settings import Setting

# tokens that the error of long texts is averaged over
POSITIONS_BIN = 50


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """The means of one setting over the `cases` of one group of a part."""

    part: str
    group: str
    setting: str
    cases: int
    values: dict[str, float]


@dataclasses.dataclass(frozen=True, slots=True)
class Grid:
    """A setting's scores by length and depth: `scores[length][depth]`, None where not measured."""

    setting: str
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    scores: tuple[tuple[float | None, ...], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Course:
    """Mean KL of each `POSITIONS_BIN` generated tokens: by the rules, and all later tokens kept."""

    setting: str
    ruled: tuple[float, ...]
    kept: tuple[float, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Summary:
    """All of a run; `left_out` counts the cases that are longer than the model's context."""

    rows: tuple[Row, ...]
    grids: tuple[Grid, ...]
    courses: tuple[Course, ...]
    left_out: int

    def of(self, part: str) -> list[Row]:
        return [row for row in self.rows if row.part == part]


def summarise(
    cases: Sequence[Case], settings: Sequence[Setting], log: CellLog, left_out: int = 0
) -> Summary:
    """Every cell must be in the log."""
    groups = list(dict.fromkeys((case.part, case.group) for case in cases))
    rows = [
        _row(part, group, setting, [log[cell_key(case, setting)] for case in same])
        for part, group in groups
        for same in [[case for case in cases if (case.part, case.group) == (part, group)]]
        for setting in settings
    ]
    placed = [c for c in cases if isinstance(c, RetrievalCase) and c.task.depth is not None]
    long = [case for case in cases if case.part == "long"]
    return Summary(
        tuple(rows),
        tuple(_grid(setting, placed, log) for setting in settings if placed),
        tuple(_course(setting, long, log) for setting in settings if long),
        left_out,
    )


def _row(part: str, group: str, setting: Setting, cells: Sequence[Values]) -> Row:
    values = {}
    for what, first in cells[0].items():
        if isinstance(first, float | int):
            values[what] = _mean(_number(cell, what) for cell in cells)
    for what in ("loss", "kept_loss"):
        if what in values:
            values[what.replace("loss", "perplexity")] = math.exp(values[what])
    return Row(part, group, setting.name, len(cells), values)


def _grid(setting: Setting, cases: Sequence[RetrievalCase], log: CellLog) -> Grid:
    found: dict[tuple[int, float], float] = {}
    for case in cases:
        assert case.task.depth is not None
        place = len(case.task.context), case.task.depth
        found[place] = _number(log[cell_key(case, setting)], "score")
    lengths = tuple(sorted({length for length, _ in found}))
    depths = tuple(sorted({depth for _, depth in found}))
    scores = tuple(tuple(found.get((length, depth)) for depth in depths) for length in lengths)
    return Grid(setting.name, lengths, depths, scores)


def _course(setting: Setting, cases: Sequence[Case], log: CellLog) -> Course:
    def binned(what: str) -> tuple[float, ...]:
        series = [_series(log[cell_key(case, setting)], what) for case in cases]
        by_position = [_mean(values) for values in zip(*series, strict=True)]
        starts = range(0, len(by_position), POSITIONS_BIN)
        return tuple(_mean(by_position[first : first + POSITIONS_BIN]) for first in starts)

    return Course(setting.name, binned("kl_by_position"), binned("kept_kl_by_position"))


def _number(cell: Values, what: str) -> float:
    value = cell[what]
    assert isinstance(value, float | int)
    return value


def _series(cell: Values, what: str) -> list[float]:
    value = cell[what]
    assert isinstance(value, list)
    return value


def _mean(values: Iterable[float]) -> float:
    held = list(values)
    return sum(held) / len(held)

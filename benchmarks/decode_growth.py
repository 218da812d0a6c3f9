"""Measure the time of a generated token as the answer grows, for bounded and for full heads.

Two sequences generate on random caches of the same prompt length: one whose heads all keep a fixed
number of rows, as coverage with a fixed budget writes them, and one whose heads all keep
everything. The sequences alternate, one step each. A forward pass without any context runs between
them: its time shows the drift of the machine, which the figures subtract. On a shared machine,
`--clock processor` counts processor time instead of wall time.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from rich.table import Table

from benchmarks.decode_throughput import ours, without_context
from benchmarks.figures import Figure, add_options, report
from benchmarks.random_caches import coverage_rules, full_rules, open_random
from kvstore.pool import SequencePages
from services.runtime.model.served_model import load_model

_KEPT_RATIO = 0.2
_WARM_UP_STEPS = 3
# the first and the last tenth of the steps are compared: 200 of 2,000
_ENDS = 10
# a forward without context every so many steps
_BARE_EVERY = 4
# a line is fitted to medians of so many steps: what other processes do to one step is no growth
_WINDOW = 50
_CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
_COLOURS = {"full": "tab:red", "fixed": "tab:blue", "no context": "tab:gray"}


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Course:
    """One contestant's steps in order: seconds and rows held after each, both `[N]`."""

    seconds: NDArray[np.float64]
    rows: NDArray[np.int64]

    @property
    def ends(self) -> tuple[float, float]:
        """Median seconds of a step at the beginning and at the end."""
        ends = len(self.seconds) // _ENDS
        return float(np.median(self.seconds[:ends])), float(np.median(self.seconds[-ends:]))

    @property
    def growth(self) -> float:
        """A step at the end over one at the beginning."""
        first, last = self.ends
        return last / first

    def smooth(self, windows: int) -> Course:
        """Every window's median step, and its mean rows."""
        seconds, rows = (np.array_split(part, windows) for part in (self.seconds, self.rows))
        return Course(
            np.array([np.median(window) for window in seconds]),
            np.array([window.mean() for window in rows]),
        )

    def beside(self, bare: Course) -> Course:
        """Smoothed, with the drift that `bare` shows taken out."""
        windows = len(self.seconds) // _WINDOW
        mine, drift = self.smooth(windows), bare.smooth(windows).seconds
        return Course(mine.seconds * np.median(drift) / drift, mine.rows)

    def explained(self, degree: int) -> float:
        """Share of the seconds' variance that a polynomial in the rows explains."""
        fit = np.polynomial.Polynomial.fit(self.rows, self.seconds, degree)
        return float(1 - np.var(self.seconds - fit(self.rows)) / np.var(self.seconds))

    @property
    def seconds_per_row(self) -> float:
        """Slope of the line."""
        return float(np.polyfit(self.rows, self.seconds, 1)[0])


def race(
    model: str, batch: int, tokens: int, steps: int, clock: Callable[[], float]
) -> dict[str, Course]:
    """Let the contestants take turns for so many generated tokens."""
    served = load_model(model)
    more = steps + _WARM_UP_STEPS
    shapes = served.shapes
    caches = {
        "fixed": open_random(
            served, coverage_rules(shapes, tokens, _KEPT_RATIO), batch, tokens, more
        ),
        "full": open_random(served, full_rules(shapes, tokens), batch, tokens, more),
        "no context": [],
    }
    contestants: dict[str, Callable[[], None]] = {
        name: ours(served, pages) if pages else without_context(served, batch)
        for name, pages in caches.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    rows: dict[str, list[int]] = {name: [] for name in contestants}
    for number in track(range(-_WARM_UP_STEPS, steps), "generating", transient=True):
        for name, step in contestants.items():
            if not caches[name] and number % _BARE_EVERY:
                continue
            begin = clock()
            step()
            if number >= 0:
                seconds[name].append(clock() - begin)
                rows[name].append(_rows(caches[name]))
    return {name: Course(np.array(seconds[name]), np.array(rows[name])) for name in contestants}


def _rows(batch: list[SequencePages]) -> int:
    return sum(sum(map(sum, pages.row_counts())) for pages in batch)


def draw(courses: dict[str, Course], path: Path) -> None:
    """Milliseconds per step over generated tokens, smoothed, with the steps behind."""
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    tokens = max(len(course.seconds) for course in courses.values())
    for name, course in courses.items():
        colour = _COLOURS[name]
        at = np.linspace(0, tokens, len(course.seconds), endpoint=False)
        axes.plot(at, course.seconds * 1e3, ",", color=colour, alpha=0.3)
        smooth = course.smooth(tokens // _WINDOW).seconds
        at = (np.arange(len(smooth)) + 0.5) * _WINDOW
        axes.plot(at, smooth * 1e3, color=colour, label=name)
        if name != "no context":
            steady = course.beside(courses["no context"]).seconds
            axes.plot(at, steady * 1e3, "--", color=colour, label=f"{name}, drift taken out")
    highest = max(float(np.percentile(course.seconds, 98)) for course in courses.values())
    axes.set(xlabel="generated tokens", ylabel="ms a step", ylim=(0, highest * 1.1e3))
    axes.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def figures_of(courses: dict[str, Course]) -> dict[str, Figure]:
    fixed, full, bare = courses["fixed"], courses["full"], courses["no context"]
    line, beginning = full.beside(bare), "the first tenth"
    steady, variance = f"{beginning}, drift taken out", "variance of the steps' medians"
    return {
        "growth_fixed_2000": Figure(fixed.growth / bare.growth, "ratio", steady, 1.05),
        "growth_full_2000": Figure(full.growth / bare.growth, "ratio", steady),
        "growth_fixed_2000_raw": Figure(fixed.growth, "ratio", beginning),
        "growth_full_2000_raw": Figure(full.growth, "ratio", beginning),
        "growth_no_context_2000": Figure(bare.growth, "ratio", f"{beginning}: the drift"),
        "growth_full_line": Figure(line.explained(1), "ratio", variance, 0.9),
        "growth_full_parabola": Figure(line.explained(2), "ratio", variance),
        "growth_full_row_ns": Figure(line.seconds_per_row * 1e9, "ns", "one row more"),
    }


def table_of(courses: dict[str, Course]) -> Table:
    table = Table("heads", title="A step as the answer grows")
    for column in ("rows at first", "at last", "ms at first", "at last", "growth"):
        table.add_column(column, justify="right")
    for name, course in courses.items():
        first, last = (seconds * 1e3 for seconds in course.ends)
        rows = f"{course.rows[0]}", f"{course.rows[-1]}"
        table.add_row(name, *rows, f"{first:.1f}", f"{last:.1f}", f"{course.growth:.3f}")
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=1024, help="context at the beginning")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=_CLOCKS, default="wall")
    parser.add_argument("--plot", type=Path, help="draw the course here, as PNG")
    add_options(parser)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    clock = _CLOCKS[options.clock]
    courses = race(options.model, options.batch, options.tokens, options.steps, clock)
    if options.plot:
        draw(courses, options.plot)
    told = ("model", "batch", "tokens", "steps", "threads", "clock")
    conditions = {name: getattr(options, name) for name in told}
    report(options, figures_of(courses), [table_of(courses)], conditions)


if __name__ == "__main__":
    main()

"""The report's pictures, as SVG to be put into a page."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from services.evaluation.summary import POSITIONS_BIN, Course, Grid, Row

# below this a KL is rounding of the logits
_LEAST_KL = 1e-5


def frontier(rows: Sequence[Row]) -> str:
    """KL against real bytes, one line between the two ways of a setting."""
    figure, axes = _axes(9, 5)
    for row in rows:
        size = row.values["fp16_bytes"]
        ruled, kept = (max(row.values[what], _LEAST_KL) for what in ("kl", "kept_kl"))
        (line,) = axes.plot([size, size], [ruled, kept], linewidth=0.8)
        axes.plot([size], [ruled], "o", color=line.get_color())
        axes.plot([size], [kept], "o", color=line.get_color(), fillstyle="none")
        axes.annotate(row.setting, (size, ruled), (5, 3), textcoords="offset points", fontsize=7)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("bytes of the compact cache / bytes of the dense cache in float16")
    axes.set_ylabel("mean KL(full‖compact), nats")
    axes.set_title("filled: as served, rules at work · hollow: every later token kept", fontsize=9)
    return _svg(figure)


def needle_grids(grids: Sequence[Grid]) -> str:
    """One map a setting: green where the needle was found."""
    columns = min(3, len(grids))
    lines = math.ceil(len(grids) / columns)
    figure = Figure(figsize=(4 * columns, 0.8 + 2.2 * lines), layout="constrained")
    for number, grid in enumerate(grids, 1):
        axes = figure.add_subplot(lines, columns, number)
        scores = [[math.nan if s is None else s for s in line] for line in grid.scores]
        axes.imshow(scores, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        axes.set_title(grid.setting, fontsize=8)
        axes.set_yticks(range(len(grid.lengths)), map(str, grid.lengths), fontsize=7)
        shown = range(0, len(grid.depths), max(1, len(grid.depths) // 6))
        axes.set_xticks(shown, [f"{grid.depths[n]:.2f}" for n in shown], fontsize=7)
    return _svg(figure)


def courses(found: Sequence[Course]) -> str:
    """KL by position: solid by the rules, dashed with every later token kept."""
    figure, axes = _axes(9, 4.5)
    for course in found:
        # a bin's middle
        places = [POSITIONS_BIN * (n + 0.5) for n in range(len(course.ruled))]
        ruled, kept = ([max(kl, _LEAST_KL) for kl in of] for of in (course.ruled, course.kept))
        (line,) = axes.plot(places, ruled, label=course.setting)
        axes.plot(places, kept, "--", linewidth=0.8, color=line.get_color())
    axes.set_yscale("log")
    axes.set_xlabel("generated tokens")
    axes.set_ylabel(f"KL, nats, mean of {POSITIONS_BIN} tokens")
    axes.set_title("solid: rules at work · dashed: every later token kept", fontsize=9)
    axes.legend(fontsize=7)
    return _svg(figure)


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(visible=True, which="both", linewidth=0.3)
    return figure, axes


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    # a page holds the element, not a document with a head of its own
    return file.getvalue().partition("<svg")[1] + file.getvalue().partition("<svg")[2]

"""Draws dashboards from real data, for the docs: no Grafana server is needed."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Callable, Sequence

import matplotlib as mpl

mpl.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter

from deploy.dashboards.files import target_ratio
from deploy.dashboards.grafana import to_grafana
from deploy.dashboards.panels import Dashboard, Kind, Panel
from deploy.observe.check import Seen

_COLUMNS = 24
# inches of a column and of a unit of height
_WIDE, _HIGH = 0.62, 0.36
_MOST_NAMES = 8


def draw_dashboards(seen: Sequence[Seen], folder: pathlib.Path) -> None:
    """One PNG a dashboard, named like its file."""
    folder.mkdir(parents=True, exist_ok=True)
    for dashboard, targets in itertools.groupby(seen, key=lambda one: one.dashboard):
        figure = _figure(dashboard, list(targets))
        # a picture says for which rule it was drawn, since a test cannot read its lines
        drawn = {"Target": f"{target_ratio():g}"}
        figure.savefig(folder / f"{dashboard.name}.png", dpi=60, metadata=drawn)
        plt.close(figure)


def _figure(dashboard: Dashboard, seen: Sequence[Seen]) -> Figure:
    places = [panel["gridPos"] for panel in to_grafana(dashboard)["panels"]]
    high = max(place["y"] + place["h"] for place in places)
    figure = plt.figure(figsize=(_COLUMNS * _WIDE, high * _HIGH + 0.5), facecolor="#f4f5f5")
    figure.suptitle(dashboard.title, x=0.01, ha="left", weight="bold", y=0.995)
    grid = figure.add_gridspec(high, _COLUMNS, left=0.05, right=0.985, top=0.95, bottom=0.03)
    for panel, place in zip(dashboard.panels, places, strict=True):
        rows = slice(place["y"], place["y"] + place["h"])
        columns = slice(place["x"], place["x"] + place["w"])
        inner = grid[rows, columns].subgridspec(1, 1, wspace=0)
        axes = figure.add_subplot(inner[0])
        box = axes.get_position()
        # room for titles and ticks within the panel
        axes.set_position(
            (box.x0 + 0.01, box.y0 + 0.012, box.width - 0.035, box.height - 0.012 - 0.9 / high)
        )
        _draw(axes, panel, [one for one in seen if one.panel is panel])
    return figure


def _draw(axes: Axes, panel: Panel, seen: Sequence[Seen]) -> None:
    axes.set_title(panel.title, loc="left", fontsize=9, weight="bold")
    axes.tick_params(labelsize=7)
    series = {name: values for one in seen for name, values in one.series.items()}
    if not series:
        axes.text(0.5, 0.5, "no data", ha="center", color="gray", fontsize=8)
        axes.set_axis_off()
    elif panel.kind in (Kind.STAT, Kind.TABLE):
        _write(axes, panel, series)
    elif panel.kind is Kind.HEAT_MAP:
        _heat_map(axes, series)
    else:
        _lines(axes, panel, series)


def _write(axes: Axes, panel: Panel, series: dict[str, list[tuple[float, float]]]) -> None:
    axes.set_axis_off()
    shown = _formatter(panel.unit)
    if panel.kind is Kind.TABLE:
        text, size = "\n".join(series), 7
    else:
        alone = len(series) == 1
        lines = [
            shown(values[-1][1]) + ("" if alone else f"  {name}") for name, values in series.items()
        ]
        text, size = "\n".join(lines), 20 if alone else 11
    axes.text(0.02, 0.5, text, va="center", fontsize=size, transform=axes.transAxes)


def _lines(axes: Axes, panel: Panel, series: dict[str, list[tuple[float, float]]]) -> None:
    start = min(values[0][0] for values in series.values())
    if panel.stacked:
        moments = sorted({moment for values in series.values() for moment, _ in values})
        heights = [_on(moments, values) for values in series.values()]
        axes.stackplot([m - start for m in moments], heights, labels=list(series), alpha=0.7)
    else:
        for name, values in series.items():
            axes.plot([m - start for m, _ in values], [v for _, v in values], label=name)
    axes.set_ylim(bottom=0, top=panel.highest)
    axes.grid(alpha=0.3)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _formatter(panel.unit)(value)))
    axes.xaxis.set_major_formatter(EngFormatter(unit="s"))
    handles, names = axes.get_legend_handles_labels()
    axes.legend(
        handles[:_MOST_NAMES],
        names[:_MOST_NAMES],
        fontsize=6,
        loc="upper left",
        ncols=2,
        framealpha=0.6,
    )


def _on(moments: Sequence[float], values: Sequence[tuple[float, float]]) -> list[float]:
    known = dict(values)
    return [known.get(moment, 0.0) for moment in moments]


def _heat_map(axes: Axes, series: dict[str, list[tuple[float, float]]]) -> None:
    moments = sorted({moment for values in series.values() for moment, _ in values})
    names = sorted(series)
    cells = np.full((len(names), len(moments)), np.nan)
    for row, name in enumerate(names):
        for moment, value in series[name]:
            cells[row, moments.index(moment)] = value
    axes.imshow(cells, aspect="auto", origin="lower", vmin=0, vmax=1, cmap="viridis")
    few = range(0, len(names), max(1, len(names) // 10))
    # within the cells: names of head classes are long
    inside = {"facecolor": "white", "alpha": 0.6, "edgecolor": "none", "pad": 0.5}
    axes.set_yticks(list(few), [names[row] for row in few], ha="left", bbox=inside)
    axes.tick_params(axis="y", length=0, pad=-4)
    axes.set_xticks([])


def _formatter(unit: str) -> Callable[[float], str]:
    """A function that writes a number in the unit of a panel."""
    match unit:
        case "percentunit":
            return lambda value: f"{value:.0%}"
        case "bytes" | "Bps":
            return EngFormatter(unit="B/s" if unit == "Bps" else "B", places=1)
        case "s":
            return EngFormatter(unit="s")
        case "suffix:×":
            return lambda value: f"{value:.2f}×"
        case _:
            return lambda value: f"{value:.3g}"

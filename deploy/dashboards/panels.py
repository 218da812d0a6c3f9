"""The parts of a dashboard, which `grafana.py` turns into Grafana's JSON."""

from __future__ import annotations

import dataclasses
import enum

# the label matchers of every expression, from the dashboard's variables
SELECTION = 'namespace=~"$namespace", instance=~"$instance"'


class Kind(enum.StrEnum):
    """The kinds of panel used, by Grafana's names."""

    TIME_SERIES = "timeseries"
    STAT = "stat"
    HEAT_MAP = "heatmap"
    TABLE = "table"


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """One expression and the name of its series, in which Grafana fills in `{{label}}`."""

    expr: str
    legend: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Panel:
    """`unit` is one of Grafana's names, `width` counts of 24 columns."""

    title: str
    description: str
    targets: tuple[Target, ...]
    unit: str = "short"
    kind: Kind = Kind.TIME_SERIES
    stacked: bool = False
    highest: float | None = None
    width: int = 12
    height: int = 8


@dataclasses.dataclass(frozen=True, slots=True)
class Dashboard:
    """`name` is its file's and its link's."""

    name: str
    title: str
    description: str
    panels: tuple[Panel, ...]


def select(metric: str, labels: str = "") -> str:
    """The metric's series within the variables' selection."""
    return f"{metric}{{{SELECTION}{', ' if labels else ''}{labels}}}"


def rate(metric: str, labels: str = "") -> str:
    """Increase a second over an interval that Grafana fits to the resolution."""
    return f"rate({select(metric, labels)}[$__rate_interval])"


def total(expr: str, by: str = "") -> str:
    """The sum over all series, or those of each value of `by`."""
    return f"sum by ({by}) ({expr})" if by else f"sum({expr})"


def mean(histogram: str, by: str = "", labels: str = "") -> str:
    """A histogram's mean over the interval."""
    above, below = (total(rate(f"{histogram}_{n}", labels), by) for n in ("sum", "count"))
    return f"{above} / ({below} > 0)"


def quantiles(histogram: str, *levels: float) -> tuple[Target, ...]:
    """One target a level, named p50 and so on."""
    buckets = total(rate(f"{histogram}_bucket"), "le")
    return tuple(
        Target(f"histogram_quantile({level:g}, {buckets})", f"p{level * 100:g}") for level in levels
    )

"""Runs every panel's expressions and says which have data."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

from deploy.dashboards import DASHBOARDS
from deploy.dashboards.panels import Dashboard, Panel, Target
from deploy.observe.prometheus import Prometheus

_VARIABLES = {"$namespace": ".*", "$instance": ".*", "$head_class": ".*"}
_NAME = re.compile(r"\bheadwise_[a-z_]+")


@dataclasses.dataclass(frozen=True, slots=True)
class Interval:
    """The time range of a query, and the time between two points, in seconds."""

    start: float
    end: float
    step: float = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """A target's series, those without a single number left out; each `[(time, value), …]`."""

    dashboard: Dashboard
    panel: Panel
    target: Target
    series: dict[str, list[tuple[float, float]]]


def look(prometheus: Prometheus, interval: Interval) -> Iterator[Seen]:
    """Every target of every dashboard."""
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels:
            for target in panel.targets:
                yield Seen(dashboard, panel, target, _series(prometheus, target, interval))


def metrics_in(expr: str) -> frozenset[str]:
    """Names of the metrics of ours that an expression reads, recordings left out."""
    # in level:metric:operations a colon stands before the name
    names = (match.group() for match in _NAME.finditer(expr) if expr[match.start() - 1] != ":")
    return frozenset(re.sub("_(bucket|sum|count)$", "", name) for name in names)


def plain(expr: str, rate_seconds: float) -> str:
    """The expression with Grafana's variables filled in."""
    for variable, value in _VARIABLES.items():
        expr = expr.replace(variable, value)
    return expr.replace("$__rate_interval", f"{rate_seconds:g}s")


def _series(
    prometheus: Prometheus, target: Target, interval: Interval
) -> dict[str, list[tuple[float, float]]]:
    expr = plain(target.expr, 10 * interval.step)
    found = prometheus.query_range(expr, interval.start, interval.end, interval.step)
    named = {_name(target, series["metric"]): _numbers(series["values"]) for series in found}
    return {name: values for name, values in named.items() if values}


def _numbers(values: list[list[Any]]) -> list[tuple[float, float]]:
    pairs = ((float(moment), float(value)) for moment, value in values)
    return [(moment, value) for moment, value in pairs if math.isfinite(value)]


def _name(target: Target, labels: dict[str, str]) -> str:
    if not target.legend:
        return ", ".join(f"{name} {value}" for name, value in sorted(labels.items()))
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), target.legend)

"""Figures as every benchmark reports them: printed for people, and written as JSON."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
    """A measured value, what it is held against, and the target where there is one.

    The target is not to be exceeded, or with `at_least` to be reached.
    """

    value: float
    unit: str
    against: str
    target: float | None = None
    at_least: bool = False


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `report` reads."""
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--machine", default=f"{os.cpu_count()} CPU cores", help="its kind")


def report(
    options: argparse.Namespace,
    figures: Mapping[str, Figure],
    tables: Sequence[Table],
    conditions: Mapping[str, object],
) -> None:
    """Print tables and figures, and write the latter if asked to."""
    Console().print(*tables, _table(figures))
    write(options, figures, conditions)


def write(
    options: argparse.Namespace, figures: Mapping[str, Figure], conditions: Mapping[str, object]
) -> None:
    """Write the figures if asked to; what a long run knows so far, too."""
    if options.json:
        document = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": options.machine,
            "conditions": {"python": platform.python_version(), **conditions},
            "figures": {name: dataclasses.asdict(figure) for name, figure in figures.items()},
        }
        options.json.write_text(json.dumps(document, indent=2) + "\n")


def _table(figures: Mapping[str, Figure]) -> Table:
    table = Table("figure", "value", "target", "against", title="Figures")
    for name, figure in figures.items():
        target = "" if figure.target is None else f"{figure.target:g}"
        table.add_row(name, f"{figure.value:.4g} {figure.unit}", target, figure.against)
    return table

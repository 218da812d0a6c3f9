"""Figures of a part, written and printed as they come."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import math
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.figures import Figure

Figures = Iterator[tuple[str, Figure]]
# units of figures that are right or wrong, and no matter of speed
EXACT_UNITS = ("tolerances", "tests")
_LIBRARIES = ("torch", "triton", "numpy", "transformers", "numba", "grpcio", "protobuf")


class Implausible(ValueError):
    """A figure that nothing can have."""


class Recorder:
    """Writes a part's file after each figure, so that a process that dies loses none."""

    def __init__(
        self, path: Path, part: str, machine: str, conditions: Mapping[str, object]
    ) -> None:
        self._path = path
        self._began = time.monotonic()
        self._document: dict[str, object] = {
            "part": part,
            "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
            "machine": machine,
            "versions": versions(),
            "conditions": dict(conditions),
        }
        self._figures: dict[str, Figure] = {}
        self._write()

    @property
    def wrong(self) -> list[str]:
        """Names of exact figures that miss their target."""
        return [
            name
            for name, figure in self._figures.items()
            if figure.unit in EXACT_UNITS and not met(figure)
        ]

    def add(self, name: str, figure: Figure) -> None:
        """Write and print a figure. Raises `Implausible` for one that cannot be."""
        exact = figure.unit in EXACT_UNITS
        if not exact and not (math.isfinite(figure.value) and figure.value > 0):
            raise Implausible(f"{name} is {figure.value} {figure.unit}")
        self.set(name, figure)
        after = time.monotonic() - self._began
        print(f"{name} = {figure.value:.4g} {figure.unit} ({after:.1f} s)", flush=True)

    def set(self, name: str, figure: Figure) -> None:
        """Write a figure without a line of its own; a later one of the name takes its place."""
        self._figures[name] = figure
        self._write()

    def _write(self) -> None:
        figures = {name: dataclasses.asdict(figure) for name, figure in self._figures.items()}
        text = json.dumps(self._document | {"figures": figures}, indent=2) + "\n"
        # a reader never sees half a file
        beside = self._path.with_suffix(".new")
        beside.write_text(text)
        beside.replace(self._path)


def met(figure: Figure) -> bool:
    """Whether the target is reached; true where there is none."""
    if figure.target is None:
        return True
    if figure.at_least:
        return figure.value >= figure.target
    return figure.value <= figure.target


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found

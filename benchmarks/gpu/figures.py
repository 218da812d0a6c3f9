"""Figures, and the file and table they end in."""

from __future__ import annotations

import dataclasses
import datetime
import platform

import torch
import triton
from rich.table import Table

from benchmarks.figures import Figure
from benchmarks.gpu.sizes import Sizes


def document(figures: dict[str, Figure], sizes: Sizes, device: torch.device) -> dict[str, object]:
    """Return the content of the JSON file."""
    conditions = dataclasses.asdict(sizes) | {"dtype": str(sizes.dtype)}
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "machine": device_name(device),
        "versions": versions(),
        "conditions": conditions,
        "figures": {name: dataclasses.asdict(figure) for name, figure in figures.items()},
    }


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "the interpreter on a CPU: times mean nothing"


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda or "none",
    }


def table(figures: dict[str, Figure], device: torch.device) -> Table:
    """The figures for people."""
    result = Table(title=device_name(device))
    for column in ("figure", "value", "unit", "against", "target"):
        result.add_column(column, justify="right" if column in ("value", "target") else "left")
    for name, figure in figures.items():
        target = "–" if figure.target is None else f"{figure.target:g}"
        result.add_row(name, f"{figure.value:.4g}", figure.unit, figure.against, target)
    return result

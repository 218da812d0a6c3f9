"""Ceilings of the device: its speed in copying memory and in multiplying matrices."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch

from benchmarks.figures import Figure
from benchmarks.gpu.figures import Figures
from benchmarks.gpu.parts import CEILINGS
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.timing import Timer

# what an H200 of that kind was seen to do, for when its own could not be measured
_ASSUMED = 4.3, 780.0
_COPY, _PRODUCTS = "copy_bandwidth", "matrix_rate"


@dataclasses.dataclass(frozen=True, slots=True)
class Ceilings:
    """Bytes read and written a second, and floating point operations a second."""

    copy_bytes: float
    operations: float
    measured: bool = True

    @classmethod
    def read(cls, folder: Path) -> Ceilings:
        """Return what the part `ceilings` has written to the folder, or assumed ceilings."""
        try:
            figures = json.loads((folder / f"{CEILINGS}.json").read_text())["figures"]
            copied, products = figures[_COPY]["value"], figures[_PRODUCTS]["value"]
        except (OSError, ValueError, KeyError):
            return cls(_ASSUMED[0] * 1e12, _ASSUMED[1] * 1e12, measured=False)
        return cls(copied * 1e12, products * 1e12)

    @property
    def copying(self) -> str:
        """The name of the bandwidth that shares are held against."""
        return "copy bandwidth" if self.measured else f"an assumed {_ASSUMED[0]} TB/s"


def measure(sizes: Sizes, timer: Timer) -> Figures:
    source = torch.ones(sizes.copy_bytes, dtype=torch.uint8, device=timer.device)
    target = torch.empty_like(source)
    copy_seconds = timer.seconds(lambda: target.copy_(source))
    copied = 2 * sizes.copy_bytes / copy_seconds
    yield _COPY, Figure(copied / 1e12, "TB/s", "bytes read and written")
    side = sizes.matrix_rows
    a, b = torch.randn(2, side, side, device=timer.device).to(sizes.dtype)
    operations = 2 * side**3 / timer.seconds(lambda: a @ b)
    yield _PRODUCTS, Figure(operations / 1e12, "TFLOP/s", "a square product")

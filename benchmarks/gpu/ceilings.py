"""Ceilings of the device: its speed in copying memory and in multiplying matrices."""

from __future__ import annotations

import dataclasses

import torch

from benchmarks.figures import Figure
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.timing import Timer


@dataclasses.dataclass(frozen=True, slots=True)
class Ceilings:
    """Bytes read and written a second, and floating point operations a second."""

    copy_bytes: float
    operations: float

    def figures(self) -> dict[str, Figure]:
        return {
            "copy_bandwidth": Figure(self.copy_bytes / 1e12, "TB/s", "bytes read and written"),
            "matrix_rate": Figure(self.operations / 1e12, "TFLOP/s", "a square product"),
        }


def measure(sizes: Sizes, timer: Timer) -> Ceilings:
    source = torch.ones(sizes.copy_bytes, dtype=torch.uint8, device=timer.device)
    target = torch.empty_like(source)
    copy_seconds = timer.seconds(lambda: target.copy_(source))
    side = sizes.matrix_rows
    a, b = torch.randn(2, side, side, device=timer.device).to(sizes.dtype)
    product_seconds = timer.seconds(lambda: a @ b)
    return Ceilings(2 * sizes.copy_bytes / copy_seconds, 2 * side**3 / product_seconds)

"""The distance of a result from what it should be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from benchmarks.figures import Figure
from benchmarks.gpu.faults import spoiled

# in place of infinity and NaN, which JSON does not have
NOT_FINITE = 1e9


def error(found: torch.Tensor, expected: torch.Tensor, absolute: float, relative: float) -> float:
    """Return the greatest error in tolerances `absolute + relative · |expected|`; 1 is allowed."""
    if found.shape != expected.shape:
        return NOT_FINITE
    if not found.numel():
        return 0.0
    exact = expected.double()
    allowed = absolute + relative * exact.abs()
    worst = float(((found.double() - exact).abs() / allowed).max())
    return worst if math.isfinite(worst) else NOT_FINITE


def twice(
    part: str, compute: Callable[[], Sequence[torch.Tensor]]
) -> tuple[list[torch.Tensor], bool]:
    """Return what is computed, and whether the same bits come again."""
    first, again = compute(), compute()
    same = all(
        torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
        for one, other in zip(first, again, strict=True)
    )
    changed = [spoiled(part, first[0]), *first[1:]]
    return changed, same


def figure(worst: float, same: bool, against: str) -> Figure:
    """Return the figure of one form of a kernel; bits that differ the second time are no error."""
    return Figure(worst if same else NOT_FINITE, "tolerances", against, 1.0)

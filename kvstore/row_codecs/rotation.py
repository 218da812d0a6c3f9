"""The rotation that spreads a row's outliers over its elements before it is coded in 4 bits.

Keys have a few channels far larger than the others, and a scale that covers those leaves no steps
for the rest. Source: QuaRot (arXiv 2404.00456). The matrix is orthogonal and its own inverse, so
`q · k = (q H) · (k H)`: attention runs on rotated rows with rotated queries, and what comes out of
rotated values is rotated back once, per query and not per row. It is the same for every head, so
nothing has to travel with the cache.
"""

from __future__ import annotations

import functools
import math

import torch


@functools.cache
def hadamard(size: int) -> torch.Tensor:
    """Sylvester's matrix, scaled to be orthogonal, f32 `[D, D]`; symmetric.

    Where D is no power of two: blocks of the largest power of two that divides it.
    """
    block = size & -size
    matrix = torch.ones(1, 1)
    while len(matrix) < block:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return torch.kron(torch.eye(size // block), matrix / math.sqrt(block))


@functools.cache
def _hadamard_on(size: int, device: torch.device) -> torch.Tensor:
    """Return a matrix that stays on the device: a captured step cannot copy from the host."""
    return hadamard(size).to(device)


def rotate(rows: torch.Tensor) -> torch.Tensor:
    """`[..., D]` rotated, in the same dtype, the product in f32; again: as it was."""
    matrix = _hadamard_on(rows.shape[-1], rows.device)
    return (rows.float() @ matrix).to(rows.dtype)

"""Prefix sums of the heads' rows in each layer, computed on the device."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


def row_ends(rows: torch.Tensor, ends: torch.Tensor) -> None:
    """Write the prefix sums of the heads' rows in each layer, `ends` int32 `[L, B · H]`.

    `rows` int32 `[B, L, H]`. One launch per step.
    """
    _, layers, heads = rows.shape
    _row_ends[(layers,)](ends, rows, layers, heads, ends.shape[1], BLOCK=1024)


@triton.jit
def _row_ends(
    ends: tl.tensor,
    rows: tl.tensor,
    layers: int,
    heads: int,
    count: int,
    BLOCK: tl.constexpr,
) -> None:
    """Program (layer)."""
    layer = tl.program_id(0)
    before = 0
    for first in range(0, count, BLOCK):
        line = first + tl.arange(0, BLOCK)
        valid = line < count
        place = (line // heads * layers + layer) * heads + line % heads
        held = tl.load(rows + place, mask=valid, other=0)
        tl.store(ends + layer * count + line, before + tl.cumsum(held, 0), mask=valid)
        before += tl.sum(held, 0)

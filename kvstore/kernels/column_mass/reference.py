"""Column mass as its definition reads: one dense float64 block of the map at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_ROWS = 64


def column_mass(
    far: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    lse: torch.Tensor,
    positions: torch.Tensor,
    *,
    edges: Sequence[int],
    scale: float,
    sliding_window: int | None,
    value_norms: torch.Tensor | None,
) -> None:
    """Compute op.py's column mass in float64."""
    group, n = q.shape[0] // k.shape[0], k.shape[1]
    keys = k.double().repeat_interleave(group, 0)
    total = torch.zeros(q.shape[0], len(edges), n, dtype=torch.float64, device=q.device)
    positions = positions.to(q.device)
    for first in range(0, positions.numel(), _ROWS):
        rows = slice(first, first + _ROWS)
        distance = positions[rows, None] - torch.arange(n, device=q.device)
        logits = q[:, rows].double() @ keys.transpose(1, 2) * scale
        visible = distance >= 0
        if sliding_window is not None:
            visible &= distance < sliding_window
        mass = (logits - lse[:, rows, None].double()).exp().where(visible, 0.0)
        if value_norms is not None:
            mass *= value_norms.double().repeat_interleave(group, 0)[:, None]
            mass /= mass.sum(-1, keepdim=True)
        for number, edge in enumerate(edges):
            total[:, number] += mass.where(distance >= edge, 0.0).sum(1)
    far[:, :, :n] += total.to(far.dtype)

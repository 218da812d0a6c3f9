"""Column mass as its definition reads: one dense float64 block of the map at a time."""

from __future__ import annotations

import torch

from kvstore.kernels.column_mass.input import ColumnMassInput

_ROWS = 64


def column_mass(far: torch.Tensor, inputs: ColumnMassInput) -> None:
    """Compute op.py's column mass in float64."""
    q, k, lse, edges = inputs.q, inputs.k, inputs.lse, inputs.edges
    group, n = q.shape[0] // k.shape[0], k.shape[1]
    keys = k.double().repeat_interleave(group, 0)
    total = torch.zeros(q.shape[0], len(edges), n, dtype=torch.float64, device=q.device)
    positions = inputs.positions.to(q.device)
    for first in range(0, positions.numel(), _ROWS):
        rows = slice(first, first + _ROWS)
        distance = positions[rows, None] - torch.arange(n, device=q.device)
        logits = q[:, rows].double() @ keys.transpose(1, 2) * inputs.scale
        visible = distance >= 0
        if inputs.sliding_window is not None:
            visible &= distance < inputs.sliding_window
        mass = (logits - lse[:, rows, None].double()).exp().where(visible, 0.0)
        if inputs.value_norms is not None:
            mass *= inputs.value_norms.double().repeat_interleave(group, 0)[:, None]
            mass /= mass.sum(-1, keepdim=True)
        for number, edge in enumerate(edges):
            total[:, number] += mass.where(distance >= edge, 0.0).sum(1)
    far[:, :, :n] += total.to(far.dtype)

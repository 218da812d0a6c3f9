"""Column peaks as their definition reads, in float64."""

from __future__ import annotations

import torch


def column_peak(
    peaks: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    lse: torch.Tensor,
    first_position: int,
    *,
    scale: float,
    sliding_window: int | None,
) -> None:
    """Compute op.py's column peaks in float64."""
    keys = k.double().repeat_interleave(q.shape[0] // k.shape[0], 0)
    paid = (q.double() @ keys.mT * scale - lse[:, :, None].double()).exp()
    if sliding_window is not None:
        rows = torch.arange(first_position, first_position + q.shape[1], device=q.device)
        distance = rows[:, None] - torch.arange(k.shape[1], device=q.device)
        paid = paid.where(distance < sliding_window, 0.0)
    torch.maximum(peaks, paid.amax(1).to(peaks.dtype), out=peaks)

"""How many of the columns that a query sees it really looks at."""

from __future__ import annotations

import torch

_BLOCK_ROWS = 16


def row_densities(
    q: torch.Tensor,
    k: torch.Tensor,
    positions: torch.Tensor,
    *,
    threshold: float,
    scale: float,
    sliding_window: int | None,
) -> torch.Tensor:
    """The share of each row's visible columns with `A_ij >= threshold · max_j A_ij`, `[HQ, m]`.

    `q` `[HQ, m, D]` stand at the ascending `positions` int64 `[m]`; `k` `[H, n, D]`. Source:
    VL-Cache (arXiv 2410.23317), whose layer's density is the mean. Probabilities relative to the
    highest need no normalisation.
    """
    keys = k.float().repeat_interleave(q.shape[0] // k.shape[0], 0).mT
    columns = torch.arange(k.shape[1], device=q.device)
    found = []
    for first in range(0, q.shape[1], _BLOCK_ROWS):
        rows = slice(first, first + _BLOCK_ROWS)
        distance = positions[rows, None].to(q.device) - columns
        visible = (distance >= 0) & (distance < (sliding_window or k.shape[1] + 1))
        logits = (q[:, rows].float() @ keys * scale).masked_fill(~visible, -torch.inf)
        relative = (logits - logits.amax(-1, keepdim=True)).exp()
        dense = ((relative >= threshold) & visible).sum(-1)
        found.append(dense / visible.sum(-1))
    return torch.cat(found, 1)

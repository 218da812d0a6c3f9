"""Prefill attention in plain torch, for any device and dtype."""

from __future__ import annotations

import torch

# logits held at once: 64 MiB of f32
_TILE_ELEMENTS = 1 << 24


def prefill_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float,
    sliding_window: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See op.py. Computes in f32, or in f64 if that is what it is given."""
    heads, m, _ = q.shape
    n = k.shape[1]
    dtype = torch.promote_types(q.dtype, torch.float32)
    keys, values = k.to(dtype), v.to(dtype)
    out = torch.empty_like(q)
    lse = torch.empty(heads, m, dtype=torch.float32, device=q.device)
    columns = torch.arange(n, device=q.device)
    step = max(1, _TILE_ELEMENTS // (heads * n))
    for first in range(0, m, step):
        rows = slice(first, min(first + step, m))
        positions = torch.arange(n - m + rows.start, n - m + rows.stop, device=q.device)[:, None]
        hidden = columns > positions
        if sliding_window is not None:
            hidden |= columns <= positions - sliding_window
        out[:, rows], lse[:, rows] = _attend_rows(q[:, rows].to(dtype), keys, values, hidden, scale)
    return out, lse


def _attend_rows(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, hidden: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`q` `[HQ, b, D]` against all keys; `hidden` bool `[b, n]`."""
    grouped = q.reshape(keys.shape[0], -1, *q.shape[1:])
    logits = torch.einsum("hgid,hjd->hgij", grouped, keys) * scale
    logits.masked_fill_(hidden, -torch.inf)
    lse = logits.logsumexp(-1, keepdim=True)
    out = torch.einsum("hgij,hjd->hgid", (logits - lse).exp_(), values)
    return out.flatten(0, 1), lse.squeeze(-1).flatten(0, 1)

"""Prefill attention on torch's own fused CPU kernel, which returns its log-sum-exp."""

from __future__ import annotations

import torch

# query rows per call where a mask is needed: it bounds the mask at this many rows of n floats
_MASK_ROWS = 512

# private, hence wrapped here and nowhere else; the contract test watches for a change of meaning
_fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001


def prefill_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float,
    sliding_window: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute op.py's attention on the CPU."""
    m, n = q.shape[1], k.shape[1]
    window = n if sliding_window is None else min(sliding_window, n)
    if m == n and window == n:
        out, lse = _fused(q[None], k[None], v[None], 0.0, True, scale=scale)
        return out[0], lse[0]
    blocks = [
        _attend_block(q, k, v, first, scale=scale, window=window)
        for first in range(0, m, _MASK_ROWS)
    ]
    return torch.cat([out for out, _ in blocks], 1), torch.cat([lse for _, lse in blocks], 1)


def _attend_block(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, first: int, *, scale: float, window: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Query rows `first` to `first + _MASK_ROWS` against just the keys that any of them sees.

    `is_causal` is aligned top-left in this kernel, so a block that is not square needs a mask; an
    additive one is faster than a boolean one.
    """
    rows = q[:, first : first + _MASK_ROWS]
    start = k.shape[1] - q.shape[1] + first
    keys = slice(max(0, start - window + 1), start + rows.shape[1])
    positions = torch.arange(start, keys.stop)[:, None]
    columns = torch.arange(keys.start, keys.stop)
    hidden = (columns > positions) | (columns <= positions - window)
    mask = torch.zeros(hidden.shape, dtype=q.dtype).masked_fill_(hidden, -torch.inf)
    out, lse = _fused(
        rows[None], k[None, :, keys], v[None, :, keys], 0.0, False, attn_mask=mask, scale=scale
    )
    return out[0], lse[0]

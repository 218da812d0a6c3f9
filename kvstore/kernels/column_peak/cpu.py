"""Column peaks a block of rows at a time: one product and one maximum per (row, column)."""

from __future__ import annotations

import torch

# logits in flight, as many as column mass was found to be fastest with
_TILE_ELEMENTS = 1 << 21
_MIN_ROWS = 8


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
    """See op.py. The exponential is taken once, of the highest exponent."""
    heads, columns = q.shape[0], k.shape[1]
    # with −lse as a further column of q and 1 as one of k, the product is the exponent itself
    queries = torch.cat([q.float() * scale, -lse.float()[..., None]], -1)
    keys = torch.nn.functional.pad(k.float(), (0, 1), value=1.0).mT
    highest = torch.full_like(peaks, -torch.inf)
    step = max(_MIN_ROWS, _TILE_ELEMENTS // max(1, heads * columns))
    for first in range(0, q.shape[1], step):
        block = queries[:, first : first + step]
        exponents = (block.reshape(k.shape[0], -1, block.shape[2]) @ keys).view(
            heads, block.shape[1], columns
        )
        if sliding_window is not None:
            _hide(exponents, first_position + first, sliding_window)
        torch.maximum(highest, exponents.amax(1), out=highest)
    torch.maximum(peaks, highest.exp_(), out=peaks)


def _hide(exponents: torch.Tensor, first_row: int, window: int) -> None:
    """Set what lies beyond the sliding window to −inf; `exponents` `[HQ, b, T]`."""
    rows = torch.arange(first_row, first_row + exponents.shape[1], device=exponents.device)
    columns = torch.arange(exponents.shape[2], device=exponents.device)
    exponents.masked_fill_(rows[:, None] - columns >= window, -torch.inf)

"""Merges the tokens that a head drops into rows that it keeps."""

from __future__ import annotations

import torch

from kvstore.plans import FittedRows


def merge_rows(
    k: torch.Tensor,
    v: torch.Tensor,
    owners: torch.Tensor,
    count: int,
    shares: torch.Tensor | None = None,
    exponent: float = 1.0,
) -> FittedRows:
    """`count` rows, each the mean of the keys and values of the tokens it owns.

    `k`, `v` `[T, D]`; `owners` int64 `[T]`: the row that each token goes into, or -1 for a token
    that is lost; every row owns one at least. `shares` f32 `[T]` weigh the means. A row
    of N tokens weighs `N ** exponent` in the softmax: its log-weight is `exponent * log(N)`. A row
    that owns one token is that token, bit by bit.
    """
    owned = (owners >= 0).nonzero().squeeze(1)
    owners = owners[owned]
    sizes = torch.bincount(owners, minlength=count)
    weights = torch.ones_like(owners, dtype=torch.float32) if shares is None else shares[owned]
    weights = weights / weights.new_zeros(count).index_add_(0, owners, weights)[owners]
    alone = sizes[owners] == 1

    def means(rows: torch.Tensor) -> torch.Tensor:
        own = rows[owned]
        mixed = torch.zeros(count, rows.shape[1], device=rows.device)
        mixed.index_add_(0, owners, weights[:, None] * own.float())
        merged = mixed.to(rows.dtype)
        merged[owners[alone]] = own[alone]
        return merged

    return FittedRows(means(v), exponent * sizes.float().log(), means(k))

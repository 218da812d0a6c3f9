"""Query rows and keys of one layer, whose column mass is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ColumnMassInput:
    """Attention of some query rows, and the distances at which to cut it.

    `q` `[HQ, m, D]` and `lse` f32 `[HQ, m]` are query rows at the ascending global `positions`
    int64 `[m]`, on the CPU. `k` `[H, n, D]` with `positions < n`; query head `h` reads KV head
    `h // G`. `A_ij = exp(q_i · k_j · scale − lse_i)` for `j <= i` within the sliding window, else
    0. With `value_norms` `[H, n]` it is `A_ij · norm_j`, renormalised so that each row sums to 1.
    """

    q: torch.Tensor
    k: torch.Tensor
    lse: torch.Tensor
    positions: torch.Tensor
    edges: Sequence[int]
    scale: float
    sliding_window: int | None = None
    value_norms: torch.Tensor | None = None

"""The most attention that any of some later queries pays to each column."""

from __future__ import annotations

import torch

from kvstore.kernels.column_peak import cpu
from kvstore.kernels.dispatch import runs_triton


def column_peak(
    peaks: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    lse: torch.Tensor,
    first_position: int,
    *,
    scale: float,
    sliding_window: int | None = None,
) -> None:
    """Raise `peaks[h, j]` to the highest `A_ij` over the query rows `i`.

    `peaks` f32 `[HQ, T]`, changed in place; `q` `[HQ, m, D]` and `lse` f32 `[HQ, m]` are query rows
    at the positions from `first_position >= T` on; `k` `[H, T, D]`; query head `h` reads KV head
    `h // G`. `A_ij = exp(q_i · k_j · scale − lse_i)` within the sliding window, else 0.

    The blocked form was written for the CPU and serves every device without Triton, too.
    """
    assert first_position >= k.shape[1], "every query comes after every column"
    assert peaks.shape == (q.shape[0], k.shape[1])
    if runs_triton(peaks):
        # imported where it can run: Triton is not there on every machine
        from kvstore.kernels.column_peak import kernel

        kernel.column_peak(
            peaks, q, k, lse, first_position, scale=scale, sliding_window=sliding_window
        )
        return
    cpu.column_peak(peaks, q, k, lse, first_position, scale=scale, sliding_window=sliding_window)

"""The attention mass each column receives, by distance, without ever holding the n × n map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from kvstore.kernels.column_mass import cpu
from kvstore.kernels.dispatch import runs_triton


def column_mass(
    far: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    lse: torch.Tensor,
    positions: torch.Tensor,
    *,
    edges: Sequence[int],
    scale: float,
    sliding_window: int | None = None,
    value_norms: torch.Tensor | None = None,
) -> None:
    """Add to `far[h, e, j]` the sum over the query rows `i` with `i − j >= edges[e]` of `A_ij`.

    `far` f32 `[HQ, E, T]`, changed in place; `q` `[HQ, m, D]` and `lse` f32 `[HQ, m]` are query
    rows at the ascending global `positions` int64 `[m]` (on the CPU); `k` `[H, n, D]` with
    `positions < n <= T`; query head `h` reads KV head `h // G`. `A_ij = exp(q_i · k_j · scale −
    lse_i)` for `j <= i` within the sliding window, else 0. With `value_norms` `[H, n]` it is
    `A_ij · norm_j`, renormalised so that each row sums to 1 again.

    The tiled form was written for the CPU and serves every device without Triton, too.
    """
    assert far.shape == (q.shape[0], len(edges), far.shape[2])
    assert far.shape[2] >= k.shape[1], "a column per key"
    _form_for(far)(
        far,
        q,
        k,
        lse,
        positions,
        edges=edges,
        scale=scale,
        sliding_window=sliding_window,
        value_norms=value_norms,
    )


class _Form(Protocol):
    def __call__(
        self,
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
    ) -> None: ...


def _form_for(far: torch.Tensor) -> _Form:
    if runs_triton(far):
        # imported where it can run: Triton is not there on every machine
        from kvstore.kernels.column_mass import kernel

        return kernel.column_mass
    return cpu.column_mass

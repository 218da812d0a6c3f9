"""Exact causal attention of a prompt's chunk, with the log-sum-exp that profiling needs."""

from __future__ import annotations

from typing import Protocol

import torch

from kvstore.kernels.prefill_attention import cpu, reference


def prefill_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float,
    sliding_window: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend with the last `m` of `n` positions: `(out [HQ, m, D], lse f32 [HQ, m])`.

    `q` `[HQ, m, D]`; `k`, `v` `[H, n, D]` with m <= n; query head `h` reads KV head `h // G`.
    Causality is aligned bottom-right: query row `r` stands at position `n − m + r`. With a sliding
    window the query at position `i` sees the keys `j <= i` with `i − j < sliding_window`.
    `out` has the dtype of `q`; `lse` is the natural logarithm of the row's sum of exponentials.
    """
    assert q.shape[1] <= k.shape[1], "queries are the last of the positions"
    assert q.shape[0] % k.shape[0] == 0, "query heads divide evenly among KV heads"
    return _form_for(q)(q, k, v, scale=scale, sliding_window=sliding_window)


class _Form(Protocol):
    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        scale: float,
        sliding_window: int | None,
    ) -> tuple[torch.Tensor, torch.Tensor]: ...


def _form_for(q: torch.Tensor) -> _Form:
    if q.device.type == "cpu":
        return cpu.prefill_attention
    # imported where it can run: it takes torch a second or two
    from kvstore.kernels.prefill_attention import flash

    return flash.prefill_attention if flash.runs_flash(q) else reference.prefill_attention

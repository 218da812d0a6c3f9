"""How a known text attends exactly."""

from __future__ import annotations

import torch

from kvstore.kernels.prefill_attention.op import prefill_attention


class DenseAttention:
    """An `AttentionHook` without any cache: the whole text at once, exactly."""

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float,
        sliding_window: int | None,
    ) -> torch.Tensor:
        out, _ = prefill_attention(q[0], k[0], v[0], scale=scale, sliding_window=sliding_window)
        return out.transpose(0, 1)[None]

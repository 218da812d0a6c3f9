"""Prefill attention on a GPU: FlashAttention (Dao 2023) as torch has it, with its log-sum-exp."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch.nn.attention import varlen

# what its kernels are compiled for
_DTYPES = (torch.float16, torch.bfloat16)
_MOST_SIZE, _SIZE_STEP = 256, 8
_CAPABILITY = (8, 0)
# torch 2.11 takes fewer KV heads than query heads without being told; later ones refuse that
_GROUPED: dict[str, Any] = (
    {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters else {}
)


def runs_flash(q: torch.Tensor) -> bool:
    """Whether it computes these queries `[HQ, m, D]`."""
    size = q.shape[2]
    return (
        q.is_cuda
        and q.dtype in _DTYPES
        and size <= _MOST_SIZE
        and size % _SIZE_STEP == 0
        and _is_recent(q.device)
    )


def prefill_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float,
    sliding_window: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See op.py. The host does not wait."""
    (heads, m, _), n = q.shape, k.shape[1]
    # one sequence: from 0 to its end
    ends = torch.arange(2, dtype=torch.int32, device=q.device)
    out, lse = varlen.varlen_attn(
        q.transpose(0, 1),
        k.transpose(0, 1),
        v.transpose(0, 1),
        ends * m,
        ends * n,
        m,
        n,
        return_aux=varlen.AuxRequest(lse=True),
        scale=scale,
        # keys that are so much earlier are seen, and none later
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        **_GROUPED,
    )
    assert lse.shape == (heads, m), "heads come first"
    return out.transpose(0, 1), lse


@functools.cache
def _is_recent(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= _CAPABILITY

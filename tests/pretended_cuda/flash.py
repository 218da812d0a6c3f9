"""The documented result of `torch.nn.attention.varlen.varlen_attn`, for one sequence."""

from __future__ import annotations

import torch
from torch.nn.attention.varlen import AuxRequest

from tests.pretended_cuda.recording import plainly
from tests.pretended_cuda.tensors import DeviceTensor, on_device


def flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: AuxRequest,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The last queries of a sequence see `window_size` keys to each side, −1 for all."""
    given = (query, key, value, cu_seq_q, cu_seq_k)
    if not all(isinstance(part, DeviceTensor) for part in given):
        raise RuntimeError("flash attention runs on CUDA alone")
    if not {query.dtype, key.dtype, value.dtype} <= {torch.float16, torch.bfloat16}:
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    assert return_aux.lse
    assert enable_gqa
    assert [part.cpu().tolist() for part in given[3:]] == [[0, max_q], [0, max_k]]
    return on_device(plainly(_attend, query, key, value, scale, *window_size))


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    left: int,
    right: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    (m, heads, _), (n, kv_heads, _) = query.shape, key.shape
    k, v = (part.double().repeat_interleave(heads // kv_heads, 1) for part in (key, value))
    distance = torch.arange(n - m, n)[:, None] - torch.arange(n)
    seen = torch.ones(m, n, dtype=torch.bool)
    if left >= 0:
        seen &= distance <= left
    if right >= 0:
        seen &= distance >= -right
    logits = torch.einsum("qhd,khd->hqk", query.double(), k) * scale
    logits.masked_fill_(~seen, -torch.inf)
    out = torch.einsum("hqk,khd->qhd", logits.softmax(-1), v)
    return out.to(query.dtype), logits.logsumexp(-1).float()

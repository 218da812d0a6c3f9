"""Attention of reference queries to the rows of a prompt."""

from __future__ import annotations

import math

import torch

from kvstore.cache import LayerShape
from kvstore.kernels.device_copies import to_device
from kvstore.plans import ReferenceAttention


def visible_columns(reference: ReferenceAttention, shape: LayerShape) -> torch.Tensor:
    """Return the prompt's rows that each query attends to, bool `[n, T]`."""
    tokens, device = reference.k.shape[1], reference.k.device
    away = to_device(reference.positions, device)[:, None] - torch.arange(tokens, device=device)
    seen = away >= 0
    if shape.sliding_window is not None:
        seen &= away < shape.sliding_window
    return seen


def head_shares(
    reference: ReferenceAttention, head: int, shape: LayerShape, seen: torch.Tensor
) -> torch.Tensor:
    """Return attention of KV head `head`, f32 `[G, n, T]`; each query's rows sum to 1.

    `seen`: see `visible_columns`; a query without visible rows gets NaN.
    """
    group = shape.group
    q = reference.q[head * group : (head + 1) * group].float()
    logits = q @ reference.k[head].float().mT * reference.scale
    return logits.masked_fill_(~seen, -math.inf).softmax(-1)

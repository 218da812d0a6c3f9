"""Attention of a fed block over one layer's ragged heads: contract and dispatch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from kvstore.cache import HeadRows
from kvstore.kernels.ragged_attention import reference


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class AttentionStep:
    """What a block's attention yields for one layer.

    `out` `[HQ, m, D]` in the dtype of the queries. `received`, one entry per KV head: f32
    `[R + m]`, the probability that each held row and then each of the m new rows received,
    summed over the m queries and averaged over the G query heads; None where the head's rule
    needs no scores.
    """

    out: torch.Tensor
    received: tuple[torch.Tensor | None, ...]


def ragged_attention(
    q: torch.Tensor,
    heads: Sequence[HeadRows],
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    first_position: int,
    *,
    scale: float,
    sliding_window: int | None,
) -> AttentionStep:
    """Attend a block of m tokens to the rows each of the H heads holds, and causally to itself.

    `q` `[HQ, m, D]` with HQ = H · G, the G query heads of a KV head adjacent; `new_keys`,
    `new_values` `[H, m, D]`, the block's own rows at positions `first_position ...`, which lie
    after every held row. Query i sees all held rows in whatever order they lie, or with a sliding
    window only rows closer than that to `first_position + i`. Logits, softmax and sums are f32.
    """
    # a Triton kernel (device tensors) and a fused CPU kernel (one token fed) dispatch here
    out, received = reference.attend(
        q, heads, new_keys, new_values, first_position, scale, sliding_window
    )
    return AttentionStep(out, tuple(received))

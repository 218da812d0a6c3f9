"""The arguments of attention in one layer, as hooks, batches and kernels pass them on."""

from __future__ import annotations

import dataclasses

import torch


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class AttentionInput:
    """Queries, keys and values of the tokens that a forward pass computes, in one layer.

    A model's hook receives `q [B, HQ, n, D]` and `k`, `v [B, H, n, D]`, q and k after RoPE, as
    strided views. Batches of the pool take the same without the axis B: `q [HQ, N, D]` and
    `k`, `v [H, N, D]` of all N tokens. Logits are `scale` times the products of q and k. A token
    attends to the last `sliding_window` positions including its own, or to all if None.
    """

    layer: int
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    scale: float
    sliding_window: int | None

    def of_tokens(self, tokens: torch.Tensor) -> AttentionInput:
        """Return the input of these tokens, int64 indices `[n]`; no tensor has the axis B.

        A token's queries stay side by side in memory, as the kernels read them.
        """
        q = self.q.transpose(0, 1)[tokens].transpose(0, 1)
        return dataclasses.replace(self, q=q, k=self.k[:, tokens], v=self.v[:, tokens])

    def unbatched(self) -> AttentionInput:
        """Return the same input without the axis B, which must have one entry."""
        assert len(self.q) == 1, self.q.shape
        return dataclasses.replace(self, q=self.q[0], k=self.k[0], v=self.v[0])

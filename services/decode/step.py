"""One decode step for a batch: attention over each sequence's own rows, then retention."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvstore.kernels.ragged_attention import ragged_attention
from services.decode.sequence import RunningSequence
from services.runtime.attention import forward
from services.runtime.model import ServedModel


class BatchAttention:
    """An `AttentionHook` for B sequences that each feed one token.

    Keeps the step's own keys, values and received attention until `retain`, so that no cache
    changes before the whole forward pass has succeeded.
    """

    def __init__(self, batch: Sequence[RunningSequence]) -> None:
        self._batch = batch
        self._fed: list[tuple[int, int, torch.Tensor, torch.Tensor, Sequence[torch.Tensor | None]]]
        self._fed = []

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float,
        sliding_window: int | None,
    ) -> torch.Tensor:
        """`q [B, HQ, 1, D]`, `k`, `v [B, H, 1, D]`; returns `[B, 1, HQ, D]`."""
        out = torch.empty_like(q)
        for row, sequence in enumerate(self._batch):
            step = ragged_attention(
                q[row],
                sequence.pages.heads(layer),
                k[row],
                v[row],
                sequence.position,
                scale=scale,
                sliding_window=sliding_window,
            )
            out[row] = step.out
            self._fed.append((row, layer, k[row], v[row], step.received))
        return out.transpose(1, 2)

    def retain(self, classes: torch.Tensor) -> None:
        """Apply every head's rule after the last layer; `classes` uint8 `[B]`, the fed tokens'."""
        positions = [sequence.position for sequence in self._batch]
        for row, layer, keys, values, received in self._fed:
            pages = self._batch[row].pages
            pages.retain(layer, keys, values, positions[row], classes[row : row + 1], received)


def run_step(served: ServedModel, batch: Sequence[RunningSequence]) -> torch.Tensor:
    """Feed each sequence its next token; returns the logits `[B, V]`."""
    device = served.model.device
    tokens = torch.tensor([[sequence.next_token] for sequence in batch], device=device)
    positions = torch.tensor([[sequence.position] for sequence in batch], device=device)
    attention = BatchAttention(batch)
    logits = forward(served, tokens, positions, attention, logits=True)
    assert logits is not None
    attention.retain(served.tokenizer.classes[tokens[:, 0].cpu()])
    return logits

"""One decode step for a batch: attention over each sequence's own rows, then retention."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvstore.pool import BatchStep, PagePool, SequencePages, pages_bound
from services.runtime.attention import forward
from services.runtime.model import ServedModel


class BatchAttention:
    """An `AttentionHook` over a batch's pages."""

    def __init__(self, step: BatchStep) -> None:
        self._step = step

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float,
        sliding_window: int | None,
    ) -> torch.Tensor:
        """`q [B, HQ, m, D]`, `k`, `v [B, H, m, D]`; returns `[B, m, HQ, D]`."""
        return self._step.attend(layer, q, k, v, scale, sliding_window).transpose(1, 2)


def run_step(
    served: ServedModel, batch: Sequence[SequencePages], next_tokens: Sequence[int]
) -> torch.Tensor:
    """Feed each of B sequences its next token and apply its rules; returns the logits `[B, V]`."""
    device = served.model.device
    tokens = torch.tensor(next_tokens, device=device)[:, None]
    positions = torch.tensor([pages.length for pages in batch], device=device)[:, None]
    step = BatchStep(batch)
    logits = forward(served, tokens, positions, BatchAttention(step), logits=True)
    assert logits is not None
    step.retain(served.tokenizer.classes[tokens.cpu()])
    return logits


def warm_up(served: ServedModel) -> None:
    """Step an empty sequence once, so that no request waits until kernels are compiled.

    Takes up to a minute where they are not yet in numba's cache on disk.
    """
    pages = pages_bound(served.shapes, 1, 1)
    size = served.shapes[0].head_size
    pool = PagePool(pages, 1, size, served.dtype, served.model.device)
    with pool.reserve(pages) as reservation:
        run_step(served, [SequencePages(reservation, served.shapes)], [0])

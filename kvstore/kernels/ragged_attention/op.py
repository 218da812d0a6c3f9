"""Attention of fed tokens over one layer's ragged heads in pages: contract and dispatch."""

from __future__ import annotations

import torch

from kvstore.kernels.paged_batch import PagedBatch
from kvstore.kernels.ragged_attention import cpu, reference
from kvstore.kernels.step_scratch import StepScratch


def ragged_attention(
    q: torch.Tensor,
    batch: PagedBatch,
    layer: int,
    scratch: StepScratch,
    *,
    scale: float,
    sliding_window: int | None,
) -> torch.Tensor:
    """Attend the N tokens that B sequences feed to their held rows, and causally to their chunks.

    `q` `[N, HQ, D]`, one sequence after another, with HQ = H · G; the G query heads of a KV head
    are adjacent. A chunk's rows lie in `batch.staged`, at positions `lengths[slot] ...`, after
    every held row. A query attends to all held rows and to the rows of its chunk up to its own;
    with a sliding window, only to rows within the window. A row's log-weight is added to its
    logits. Logits, softmax and sums are f32. Coded rows are decoded tile by tile in kernels and
    head by head in torch, and are not stored. If the codec rotates, queries, fed rows and the
    result are rotated.

    Returns `[N, HQ, D]` in the dtype of the queries, and adds to `scratch.row_attention` of scored
    heads. Kernels are fastest for batches of single tokens alone, or of longer parts alone.
    """
    if batch.on_triton:
        # imported where it can run: Triton is not there on every machine
        from kvstore.kernels.ragged_attention import kernel

        return kernel.attend(q, batch, layer, scratch, scale, sliding_window)
    # the queries of a longer part are a matrix, for which plain products are as fast as a fused
    # form
    form = cpu.attend if batch.on_cpu_in_f32 and batch.single else reference.attend
    return form(q, batch, layer, scratch, scale, sliding_window)

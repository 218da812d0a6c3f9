"""Attention of fed tokens over one layer's ragged heads in pages: contract and dispatch."""

from __future__ import annotations

import torch

from kvstore.kernels.paged_batch import PagedBatch, StepScratch
from kvstore.kernels.ragged_attention import cpu, reference


def ragged_attention(
    q: torch.Tensor,
    batch: PagedBatch,
    layer: int,
    scratch: StepScratch,
    *,
    scale: float,
    sliding_window: int | None,
) -> torch.Tensor:
    """Attend the N tokens that B sequences feed to their held rows and causally to their blocks.

    `q` `[N, HQ, D]`, one sequence after another, with HQ = H · G, the G query heads of a KV head
    adjacent. A block's rows lie in `batch.fed`, at positions `lengths[slot] ...`, after every held
    row; a query sees those of its block up to its own, and all held rows, or with a sliding window
    only rows closer than that. A row's log-weight is added to its logits. Logits, softmax and sums
    are f32. Coded rows are decoded on the way, a tile at a time by kernels and a head at a time in
    plain torch, and nowhere kept; where the codec rotates, queries and fed rows are rotated, and so
    is the outcome. Returns `[N, HQ, D]` in the dtype of the queries, and adds to `scratch.received`
    of scored heads. The kernels' best is for a batch of single tokens, or of blocks alone.
    """
    if batch.on_triton:
        # imported where it can run: Triton is not there on every machine
        from kvstore.kernels.ragged_attention import kernel

        return kernel.attend(q, batch, layer, scratch, scale, sliding_window)
    # a block's queries are a matrix, for which plain products are as fast as a fused form
    form = cpu.attend if batch.on_cpu_in_f32 and batch.single else reference.attend
    return form(q, batch, layer, scratch, scale, sliding_window)

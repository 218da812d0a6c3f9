"""Attention of fed tokens over one layer's ragged heads in pages: contract and dispatch."""

from __future__ import annotations

import torch

from kvstore.kernels.paged_batch import FedRows, PagedBatch, StepScratch
from kvstore.kernels.ragged_attention import cpu, reference


def ragged_attention(
    q: torch.Tensor,
    fed: FedRows,
    batch: PagedBatch,
    layer: int,
    scratch: StepScratch,
    *,
    scale: float,
    sliding_window: int | None,
) -> torch.Tensor:
    """Attend m fed tokens of each of B sequences to its held rows, and causally to themselves.

    `q` `[B, HQ, m, D]` with HQ = H · G, the G query heads of a KV head adjacent. The `fed` tokens'
    own rows of the layer are at positions `batch.lengths[b] ...`, after every held row. Query i
    sees all held rows, or with a sliding window only rows closer than that to its own position.
    Logits, softmax and sums are f32. Returns `[B, HQ, m, D]` in the dtype of the queries, and
    writes `scratch.received` of scored heads.
    """
    # a Triton kernel for device tensors dispatches here
    attend = cpu.attend if batch.on_cpu_in_f32 and q.shape[2] == 1 else reference.attend
    return attend(q, fed, batch, layer, scratch, scale, sliding_window)

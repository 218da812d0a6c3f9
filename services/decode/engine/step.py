"""One decode step: all fed tokens through the model, attention over each sequence's own rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from kvstore.attention_input import AttentionInput
from kvstore.kernels.staged_rows import StagedRows
from kvstore.pool import BatchStep, ChunkPart, PagePool, RetentionChunk, SequencePages, pages_bound
from services.runtime.model.forward_pass import forward
from services.runtime.model.served_model import ServedModel

if TYPE_CHECKING:
    from kvstore.pool.graph_batch import GraphBatch


class BatchChanged(Exception):
    """Raised where a step cannot run as planned: sequences wait for pages, or were preempted."""


class BatchAttention:
    """An `AttentionHook` over a batch's pages; the fed tokens of all sequences are one row."""

    def __init__(self, step: BatchStep | GraphBatch) -> None:
        self._step = step

    def attend(self, inputs: AttentionInput) -> torch.Tensor:
        """Return `[1, N, HQ, D]` for the N tokens of all sequences, which form one row."""
        return self._step.attend(inputs.unbatched())[None]


def forward_step(
    served: ServedModel, staged: StagedRows, parts: Sequence[ChunkPart], tokens: Sequence[int]
) -> tuple[BatchStep, torch.Tensor]:
    """Feed each sequence its part; `tokens` `[N]` are the tokens of one part after another.

    Returns the step, which is still to be decided and committed, and the logits `[B, V]` after each
    part.
    """
    for part in parts:
        part.chunk.sequence.sync()
    device = served.model.device
    ids = torch.tensor(tokens)
    counts = np.array([part.tokens for part in parts])
    first = np.array([part.chunk.sequence.length + part.chunk.fed_tokens for part in parts])
    ends = counts.cumsum()
    positions = np.repeat(first - (ends - counts), counts) + np.arange(len(tokens))
    step = BatchStep(staged, parts, served.tokenizer.classes[ids].numpy())
    logits = forward(
        served,
        ids.to(device)[None],
        torch.from_numpy(positions).to(device)[None],
        BatchAttention(step),
        logits=True,
        at=torch.from_numpy(ends - 1).to(device),
    )
    assert logits is not None
    return step, logits


def run_step(
    served: ServedModel, batch: Sequence[SequencePages], next_tokens: Sequence[int]
) -> torch.Tensor:
    """Feed each of B sequences one token and apply its rules; returns the logits `[B, V]`."""
    staged = batch[0].pool.new_staged_rows(len(batch))
    parts = [ChunkPart(RetentionChunk(sequence, n), 1) for n, sequence in enumerate(batch)]
    step, logits = forward_step(served, staged, parts, next_tokens)
    step.retain()
    return logits


def warm_up(served: ServedModel, page_rows: int) -> None:
    """Step an empty sequence twice, so that no request waits until kernels are compiled.

    Takes up to a minute where they are not yet in numba's or Triton's cache on disk; Triton's forms
    are of one size of page.
    """
    bound = pages_bound(served.shapes, 2, page_rows)
    device, dtype = served.model.device, served.dtype
    pool = PagePool(
        served.shapes, pages=bound.rows, page_rows=page_rows, dtype=dtype, device=device
    )
    sequence = pool.open(reserve=bound)
    for _ in range(2):
        run_step(served, [sequence], [0])
    sequence.release()

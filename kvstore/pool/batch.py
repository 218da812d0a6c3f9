"""One step of a batch of sequences in the pool: attention layer by layer, then one retention."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from kvstore.kernels.paged_batch import FedRows, PagedBatch, StepScratch
from kvstore.kernels.ragged_attention import ragged_attention
from kvstore.kernels.retain import carry, decide
from kvstore.pool.sequence import SequencePages


class BatchStep:
    """Feeds m tokens to each of B sequences of one pool and model, at their own positions.

    Keeps the step's own keys, values and received attention until `retain`, so that no cache
    changes before the whole forward pass has succeeded.
    """

    def __init__(self, sequences: Sequence[SequencePages], fed: int = 1) -> None:
        self._sequences = sequences
        self._batch = _paged(sequences)
        self._scratch = StepScratch.of(self._batch, fed)
        self._fed = FedRows.of(self._batch, fed)

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float,
        sliding_window: int | None,
    ) -> torch.Tensor:
        """`q [B, HQ, m, D]`, `k`, `v [B, H, m, D]`; returns `[B, HQ, m, D]`."""
        self._fed.put(layer, k, v)
        return ragged_attention(
            q,
            self._fed,
            self._batch,
            layer,
            self._scratch,
            scale=scale,
            sliding_window=sliding_window,
        )

    def retain(self, flags: torch.Tensor) -> None:
        """Apply every head's rule after the last layer; `flags` uint8 `[B, m]`, token classes.

        Raises `PoolExhausted` before any change if a sequence's reservation is too small.
        """
        rows_after = decide(self._batch, self._scratch, flags)
        tables = [sequence.tables for sequence in self._sequences]
        for table, rows in zip(tables, rows_after, strict=True):
            table.require(rows)
        grown = [table.extend(rows) for table, rows in zip(tables, rows_after, strict=True)]
        if any(grown):
            self._batch = _paged(self._sequences)
        carry(self._batch, self._scratch, self._fed, flags, rows_after)
        for sequence, rows in zip(self._sequences, rows_after, strict=True):
            sequence.tables.settle(rows)
            sequence.length += flags.shape[1]


def _paged(sequences: Sequence[SequencePages]) -> PagedBatch:
    storage = sequences[0].reservation.storage
    assert all(one.reservation.storage is storage for one in sequences), "one pool for the batch"
    tables = [sequence.tables for sequence in sequences]
    return PagedBatch(
        storage.keys,
        storage.values,
        storage.positions,
        storage.scores,
        storage.flags,
        storage.page_rows,
        tables[0].kv_heads,
        _stacked([table.pages for table in tables]),
        np.stack([table.rows for table in tables]),
        np.stack([table.rules for table in tables]),
        np.array([sequence.length for sequence in sequences], np.int64),
    )


def _stacked(pages: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    """Tables `[L, H, P]` of different P as one `[B, L, H, P]`."""
    layers, heads = pages[0].shape[:2]
    stacked = np.zeros((len(pages), layers, heads, max(p.shape[2] for p in pages)), np.int32)
    for row, table in zip(stacked, pages, strict=True):
        row[..., : table.shape[2]] = table
    return stacked

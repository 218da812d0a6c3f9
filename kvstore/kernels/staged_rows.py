"""Rows of fed tokens before their retention chunk ends."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from kvstore.kernels.head_tables import HeadTables
from kvstore.kernels.host_arrays import EncodedTokenArrays
from kvstore.kernels.row_pages import RowPages


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class StagedRows:
    """Rows of fed tokens until their retention chunk ends, in C staging slots.

    `keys`, `values` `[L, H, C, D]`, `flags` uint8 `[C]`. A chunk occupies consecutive slots. Rows
    of a sequence whose codec rotates are stored rotated.
    """

    keys: torch.Tensor
    values: torch.Tensor
    flags: NDArray[np.uint8]

    @classmethod
    def of(cls, unquantized: RowPages, tables: HeadTables, staging_slots: int) -> StagedRows:
        """Allocate `staging_slots` slots; `unquantized`: pages of rows in the model's dtype."""
        size = (*tables.rows.shape[1:], staging_slots, unquantized.layout.head_size)
        new = unquantized.keys.codes.new_empty
        return cls(new(size), new(size), np.zeros(staging_slots, np.uint8))

    def put(
        self, layer: int, staging_slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> None:
        """Store a layer's rows `[H, N, D]` of N tokens in `staging_slots` int64 `[N]`."""
        heads = k.shape[0]
        self.keys[layer, :heads, staging_slots] = k
        self.values[layer, :heads, staging_slots] = v


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ArrivingRows:
    """Rows of chunks under their codec, `[L, H, C, width]` of the codec's storage dtype.

    `staging_slots` int64 `[B]`: the first slot of each chunk.
    """

    keys: torch.Tensor
    values: torch.Tensor
    staging_slots: NDArray[np.int64]

    def on_host(self) -> EncodedTokenArrays:
        """Return the rows as bytes: a row is so many bytes, whatever it holds."""
        keys, values = (rows.view(torch.uint8).numpy() for rows in (self.keys, self.values))
        return EncodedTokenArrays(keys, values, self.staging_slots)

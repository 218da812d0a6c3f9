"""The tensors behind a pool's pages, addressed by flat row number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from kvstore.cache import FLAG_BYTES, POSITION_BYTES, SCORE_BYTES

RowIndex = slice | torch.Tensor
"""Flat row numbers: a slice where they follow one another, else int64."""


def read_rows(column: torch.Tensor, index: RowIndex) -> torch.Tensor:
    """These rows: a view of a slice, else a copy."""
    return column[index] if isinstance(index, slice) else column.index_select(0, index)


def page_bytes(page_rows: int, head_size: int, dtype: torch.dtype) -> int:
    """Bytes of one page, positions, scores and flags included."""
    row = 2 * head_size * dtype.itemsize
    return page_rows * (row + POSITION_BYTES + SCORE_BYTES + FLAG_BYTES)


class PageStorage:
    """Keys, values `[pages · page_rows, D]`, positions int32, scores f32 and flags uint8 per row.

    Row r of page p is flat row `p · page_rows + r`. With `poison` every row that is not in use
    holds NaN (keys, values, scores) and impossible positions, so that reading one shows.
    """

    def __init__(
        self,
        pages: int,
        page_rows: int,
        head_size: int,
        dtype: torch.dtype,
        device: torch.device,
        poison: bool,
    ) -> None:
        rows = pages * page_rows
        self.page_rows = page_rows
        self.head_size = head_size
        # not zeroed: rows are written before they are read, and untouched CPU pages cost nothing
        self.keys = torch.empty(rows, head_size, dtype=dtype, device=device)
        self.values = torch.empty(rows, head_size, dtype=dtype, device=device)
        self.positions = torch.empty(rows, dtype=torch.int32, device=device)
        self.scores = torch.empty(rows, dtype=torch.float32, device=device)
        self.flags = torch.empty(rows, dtype=torch.uint8, device=device)
        self._poison = poison
        self.forget(slice(0, rows))

    @property
    def page_bytes(self) -> int:
        return page_bytes(self.page_rows, self.head_size, self.keys.dtype)

    def index(self, rows: NDArray[np.int64]) -> RowIndex:
        """The cheapest index of these flat rows: a slice reads as a view, a tensor as a copy."""
        if not len(rows):
            return slice(0, 0)
        if (np.diff(rows) == 1).all():
            return slice(int(rows[0]), int(rows[-1]) + 1)
        return torch.from_numpy(rows).to(self.keys.device)

    def forget(self, rows: RowIndex) -> None:
        """Rows no longer in use; costs nothing unless poisoned."""
        if self._poison:
            self.keys[rows] = torch.nan
            self.values[rows] = torch.nan
            self.scores[rows] = torch.nan
            self.positions[rows] = torch.iinfo(torch.int32).min
            self.flags[rows] = 255

    def forget_pages(self, pages: Sequence[int]) -> None:
        for page in pages:
            self.forget(slice(page * self.page_rows, (page + 1) * self.page_rows))

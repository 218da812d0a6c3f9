"""The tensors behind a pool's pages."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from kvstore.cache import FLAG_BYTES, LOG_WEIGHT_BYTES, POSITION_BYTES, SCORE_BYTES
from kvstore.kernels.paged_batch import PageColumns

RowIndex = slice | torch.Tensor
"""Flat rows: a slice where they follow one another, else int64."""


def read_rows(column: torch.Tensor, index: RowIndex) -> torch.Tensor:
    """These rows: a view of a slice, else a copy."""
    return column[index] if isinstance(index, slice) else column.index_select(0, index)


def row_page_bytes(page_rows: int, head_size: int, dtype: torch.dtype) -> int:
    """Bytes of one page of keys and values."""
    return page_rows * 2 * head_size * dtype.itemsize


def mark_page_bytes(page_rows: int) -> int:
    """Bytes of one page of marks, log-weights not counted."""
    return page_rows * (POSITION_BYTES + SCORE_BYTES + FLAG_BYTES)


class PageStorage:
    """Row pages and as many mark pages as were asked for.

    With `poison` every row that is not in use holds NaN (keys, values, scores) and impossible
    positions, so that reading one shows.
    """

    def __init__(
        self,
        pages: int,
        mark_pages: int,
        page_rows: int,
        head_size: int,
        dtype: torch.dtype,
        device: torch.device,
        poison: bool,
    ) -> None:
        rows, marks = pages * page_rows, mark_pages * page_rows
        # not zeroed: rows are written before they are read, and untouched CPU pages cost nothing
        self.columns = PageColumns(
            keys=torch.empty(rows, head_size, dtype=dtype, device=device),
            values=torch.empty(rows, head_size, dtype=dtype, device=device),
            positions=torch.empty(marks, dtype=torch.int32, device=device),
            scores=torch.empty(marks, dtype=torch.float32, device=device),
            flags=torch.empty(marks, dtype=torch.uint8, device=device),
            log_weights=torch.empty(0, dtype=torch.float32, device=device),
            page_rows=page_rows,
        )
        self._poison = poison
        self.forget_rows(slice(0, rows))
        self.forget_marks(slice(0, marks))

    @property
    def row_page_bytes(self) -> int:
        columns = self.columns
        return row_page_bytes(columns.page_rows, columns.keys.shape[1], columns.keys.dtype)

    @property
    def mark_page_bytes(self) -> int:
        weighted = len(self.columns.log_weights) > 0
        page_rows = self.columns.page_rows
        return mark_page_bytes(page_rows) + weighted * page_rows * LOG_WEIGHT_BYTES

    def keep_log_weights(self) -> None:
        """Have the column for log-weights from now on: most pools never need it."""
        positions = self.columns.positions
        if len(self.columns.log_weights) < len(positions):
            weights = torch.zeros(len(positions), device=positions.device)
            self.columns = dataclasses.replace(self.columns, log_weights=weights)

    def index(self, rows: NDArray[np.int64]) -> RowIndex:
        """The cheapest index of these flat rows: a slice reads as a view, a tensor as a copy."""
        if not len(rows):
            return slice(0, 0)
        if (np.diff(rows) == 1).all():
            return slice(int(rows[0]), int(rows[-1]) + 1)
        return torch.from_numpy(rows).to(self.columns.keys.device)

    def copy_row_page(self, source: int, target: int) -> None:
        size, columns = self.columns.page_rows, self.columns
        for column in (columns.keys, columns.values):
            column[target * size : (target + 1) * size] = column[
                source * size : (source + 1) * size
            ]

    def forget_rows(self, rows: RowIndex) -> None:
        """Keys and values no longer in use; costs nothing unless poisoned."""
        if self._poison:
            self.columns.keys[rows] = torch.nan
            self.columns.values[rows] = torch.nan

    def forget_marks(self, marks: RowIndex) -> None:
        """Marks no longer in use, likewise."""
        if self._poison:
            self.columns.scores[marks] = torch.nan
            self.columns.positions[marks] = torch.iinfo(torch.int32).min
            self.columns.flags[marks] = 255

    def forget_row_pages(self, pages: Iterable[int]) -> None:
        if self._poison:
            for page in pages:
                self.forget_rows(self._span(page))

    def forget_mark_pages(self, pages: Iterable[int]) -> None:
        if self._poison:
            for page in pages:
                self.forget_marks(self._span(page))

    def _span(self, page: int) -> slice:
        return slice(page * self.columns.page_rows, (page + 1) * self.columns.page_rows)

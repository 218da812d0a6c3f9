"""Row pages as one coding divides them."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from kvstore.codecs import RowCoding, RowLayout, decode_rows
from kvstore.errors import InvalidParameter

RowIndex = tuple[torch.Tensor, torch.Tensor]
"""Rows by page and place in the page, int64 each."""


@dataclasses.dataclass(frozen=True, slots=True)
class PageDivision:
    """What a page of so many bytes holds: `rows` keys one after another, then as many values."""

    coding: RowCoding
    page_bytes: int
    rows: int

    @classmethod
    def of(cls, coding: RowCoding, page_bytes: int) -> PageDivision:
        """As many rows as fit. Raises `InvalidParameter` where not even one does."""
        for rows in range(page_bytes // coding.row_bytes, 0, -1):
            division = cls(coding, page_bytes, rows)
            if division.value_offset + rows * coding.values.row_bytes <= page_bytes:
                return division
        raise InvalidParameter("page_rows", f"a page holds no row coded as {coding.codec.name}")

    @property
    def value_offset(self) -> int:
        """Where the values begin, aligned for the model's dtype."""
        size = self.coding.dtype.itemsize
        return -(-self.rows * self.coding.keys.row_bytes // size) * size


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class RowPages:
    """All pages of the pool's `arena` uint8 `[P · page_bytes]`, seen through one division.

    `keys` and `values` `[P, rows, width]` are views of it. Only the pages of sequences with this
    coding hold such rows.
    """

    arena: torch.Tensor
    division: PageDivision
    keys: torch.Tensor
    values: torch.Tensor

    @classmethod
    def of(cls, arena: torch.Tensor, division: PageDivision) -> RowPages:
        coding, pages = division.coding, arena.view(-1, division.page_bytes)
        keys = _view(pages, 0, division.rows, coding.keys)
        values = _view(pages, division.value_offset, division.rows, coding.values)
        return cls(arena, division, keys, values)

    @property
    def coding(self) -> RowCoding:
        return self.division.coding

    @property
    def page_rows(self) -> int:
        return self.division.rows

    def index(self, pages: NDArray[np.int32], slots: NDArray[np.int64]) -> RowIndex:
        """Where a head's slots lie, by its table of pages."""
        device = self.arena.device
        numbers = pages[slots // self.page_rows].astype(np.int64)
        return (
            torch.from_numpy(numbers).to(device),
            torch.from_numpy(slots % self.page_rows).to(device),
        )

    def decoded_keys(self, index: RowIndex) -> torch.Tensor:
        """f32 `[R, D]`, rotated where the codec rotates."""
        return decode_rows(self.keys[index], self.coding.keys, turned=True)

    def decoded_values(self, index: RowIndex) -> torch.Tensor:
        """Likewise."""
        return decode_rows(self.values[index], self.coding.values, turned=True)


def _view(pages: torch.Tensor, first: int, rows: int, layout: RowLayout) -> torch.Tensor:
    part = pages[:, first : first + rows * layout.row_bytes]
    return part.view(layout.storage_dtype).view(-1, rows, layout.width)

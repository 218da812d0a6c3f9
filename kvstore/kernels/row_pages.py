"""Row pages under one key-value layout."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from kvstore.errors import InvalidParameter
from kvstore.row_codecs import ElementCodec, KeyValueLayout, RowLayout, decode_rows

RowIndex = tuple[torch.Tensor, torch.Tensor]
"""Rows by page and place in the page, int64 each."""

# bytes of a coded row's scale and offset in a page: one word, so that one load reads both
SCALE_WORD_BYTES = 4
# parts of a page are aligned to the largest load of a GPU, in bytes
_ALIGNMENT = 16


@dataclasses.dataclass(frozen=True, slots=True)
class PageLayout:
    """Layout of a page of so many bytes: `rows` keys, then as many values.

    Coded ones lie as all codes first, at a multiple of 16 bytes, and then a word of each row with
    its scale and offset, so that codes are loaded in vectors.
    """

    layout: KeyValueLayout
    page_bytes: int
    rows: int

    @classmethod
    def of(cls, layout: KeyValueLayout, page_bytes: int) -> PageLayout:
        """Return the layout with as many rows as fit. Raises `InvalidParameter` if none fits."""
        for rows in range(page_bytes // layout.row_bytes, 0, -1):
            page_layout = cls(layout, page_bytes, rows)
            if page_layout.end <= page_bytes:
                return page_layout
        raise InvalidParameter("page_rows", f"a page holds no row coded as {layout.codec.name}")

    @property
    def key_scales(self) -> int:
        """Byte where the words of the keys begin, or where the codes end if there are no words."""
        return self._after(0, self.layout.keys.code_bytes)

    @property
    def value_offset(self) -> int:
        """Byte where the values begin."""
        return self._after(self.key_scales, self._word_bytes(self.layout.keys))

    @property
    def value_scales(self) -> int:
        return self._after(self.value_offset, self.layout.values.code_bytes)

    @property
    def row_bytes(self) -> int:
        """Bytes of a key and its value, without the unused end of the page."""
        words = self._word_bytes(self.layout.keys) + self._word_bytes(self.layout.values)
        return self.layout.keys.code_bytes + self.layout.values.code_bytes + words

    @property
    def end(self) -> int:
        return self._after(self.value_scales, self._word_bytes(self.layout.values))

    def _after(self, first: int, row_bytes: int) -> int:
        """Return where the next part of a page begins. Unquantized rows leave no gap."""
        end = first + self.rows * row_bytes
        return end if self.layout.unquantized else -(-end // _ALIGNMENT) * _ALIGNMENT

    @staticmethod
    def _word_bytes(layout: RowLayout) -> int:
        return 0 if layout.codec is ElementCodec.MODEL else SCALE_WORD_BYTES


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class StoredRows:
    """Keys or values of all pages, read and written as whole rows `[R, width]`.

    Views: `codes` `[P, rows, n]` of the codec's storage, `scales` uint8 `[P, rows, 0, 2 or 4]`.
    """

    codes: torch.Tensor
    scales: torch.Tensor

    def __getitem__(self, rows: RowIndex) -> torch.Tensor:
        codes = self.codes[rows]
        return torch.cat((codes, self.scales[rows]), -1) if self.scales.shape[-1] else codes

    def __setitem__(self, rows: RowIndex, given: torch.Tensor) -> None:
        codes, scales = given.tensor_split((self.codes.shape[-1],), -1)
        self.codes[rows] = codes
        if self.scales.shape[-1]:
            self.scales[rows] = scales

    def fill(self, page: int, rows: slice, byte: int) -> None:
        for part in (self.codes, self.scales):
            part.view(torch.uint8)[page, rows] = byte


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class RowPages:
    """All pages of the pool's `arena` uint8 `[P · page_bytes]`, seen through one page layout.

    Only the pages of sequences with this layout hold such rows.
    """

    arena: torch.Tensor
    page_layout: PageLayout
    keys: StoredRows
    values: StoredRows

    @classmethod
    def of(cls, arena: torch.Tensor, page_layout: PageLayout) -> RowPages:
        layout, pages, rows = (
            page_layout.layout,
            arena.view(-1, page_layout.page_bytes),
            page_layout.rows,
        )
        keys = _stored(pages, 0, page_layout.key_scales, rows, layout.keys)
        values = _stored(
            pages, page_layout.value_offset, page_layout.value_scales, rows, layout.values
        )
        return cls(arena, page_layout, keys, values)

    @property
    def layout(self) -> KeyValueLayout:
        return self.page_layout.layout

    @property
    def page_rows(self) -> int:
        return self.page_layout.rows

    def index(self, pages: NDArray[np.int32], slots: NDArray[np.int64]) -> RowIndex:
        """Return the row index of a head's slots, by its table of pages."""
        device = self.arena.device
        numbers = pages[slots // self.page_rows].astype(np.int64)
        return (
            torch.from_numpy(numbers).to(device),
            torch.from_numpy(slots % self.page_rows).to(device),
        )

    def decoded_keys(self, index: RowIndex) -> torch.Tensor:
        """Return keys f32 `[R, D]`, rotated where the codec rotates."""
        return decode_rows(self.keys[index], self.layout.keys, keep_rotated=True)

    def decoded_values(self, index: RowIndex) -> torch.Tensor:
        """Return values f32 `[R, D]`, rotated where the codec rotates."""
        return decode_rows(self.values[index], self.layout.values, keep_rotated=True)


def _stored(
    pages: torch.Tensor, first: int, scales: int, rows: int, layout: RowLayout
) -> StoredRows:
    codes = pages[:, first : first + rows * layout.code_bytes].view(layout.storage_dtype)
    has_scales = layout.codec is not ElementCodec.MODEL
    words = pages[:, scales : scales + has_scales * rows * SCALE_WORD_BYTES]
    used = layout.row_bytes - layout.code_bytes
    return StoredRows(
        codes.view(len(pages), rows, -1),
        words.view(len(pages), rows, has_scales * SCALE_WORD_BYTES)[..., :used],
    )

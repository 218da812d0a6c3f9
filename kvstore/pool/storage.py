"""The tensors behind a pool's pages."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch

from kvstore.cache import FLAG_BYTES, LOG_WEIGHT_BYTES, POSITION_BYTES, SCORE_BYTES
from kvstore.kernels.head_tables import RowMetadata
from kvstore.kernels.row_pages import PageLayout, RowPages
from kvstore.row_codecs import MODEL_ROWS, KeyValueLayout, RowCodec

# repeated, NaN in every float dtype, and so is what the scale of a coded row then is
_NAN_BYTE = 255


def row_page_bytes(page_rows: int, head_size: int, dtype: torch.dtype) -> int:
    """Bytes of one page, which has room for `page_rows` keys and values of the model's dtype."""
    return page_rows * 2 * head_size * dtype.itemsize


def metadata_page_bytes(page_rows: int) -> int:
    """Return the bytes of one metadata page without log-weights."""
    return page_rows * (POSITION_BYTES + SCORE_BYTES + FLAG_BYTES)


class PageStorage:
    """Row pages and metadata pages.

    A row page is so many bytes; what lies in it follows from the layout of the sequence that has
    it. With `poison` every row that is not in use holds NaN (keys, values, scores) and impossible
    positions, so that reading one shows.
    """

    def __init__(
        self,
        pages: int,
        metadata_pages: int,
        page_rows: int,
        head_size: int,
        dtype: torch.dtype,
        device: torch.device,
        poison: bool,
    ) -> None:
        metadata = metadata_pages * page_rows
        self.row_page_bytes = row_page_bytes(page_rows, head_size, dtype)
        # not zeroed: rows are written before they are read, and untouched CPU pages cost nothing
        self.arena = torch.empty(pages * self.row_page_bytes, dtype=torch.uint8, device=device)
        self._head_size, self._dtype = head_size, dtype
        self._row_pages: dict[RowCodec, RowPages] = {}
        self.columns = RowMetadata(
            positions=torch.empty(metadata, dtype=torch.int32, device=device),
            scores=torch.empty(metadata, dtype=torch.float32, device=device),
            flags=torch.empty(metadata, dtype=torch.uint8, device=device),
            log_weights=torch.empty(0, dtype=torch.float32, device=device),
            page_rows=page_rows,
        )
        self._poison = poison
        self.forget_row_pages(range(pages))
        self.forget_metadata(slice(0, metadata))

    @property
    def unquantized(self) -> RowPages:
        """The pages as rows of the model's own."""
        return self.row_pages(MODEL_ROWS)

    def row_pages(self, codec: RowCodec) -> RowPages:
        """The pages as rows of this codec. Raises `InvalidParameter` if a page holds none."""
        if codec not in self._row_pages:
            layout = KeyValueLayout(codec, self._head_size, self._dtype)
            page_layout = PageLayout.of(layout, self.row_page_bytes)
            self._row_pages[codec] = RowPages.of(self.arena, page_layout)
        return self._row_pages[codec]

    @property
    def metadata_page_bytes(self) -> int:
        weighted = len(self.columns.log_weights) > 0
        page_rows = self.columns.page_rows
        return metadata_page_bytes(page_rows) + weighted * page_rows * LOG_WEIGHT_BYTES

    def keep_log_weights(self) -> None:
        """Have the column for log-weights from now on: most pools never need it."""
        positions = self.columns.positions
        if len(self.columns.log_weights) < len(positions):
            weights = torch.zeros(len(positions), device=positions.device)
            self.columns = dataclasses.replace(self.columns, log_weights=weights)

    def copy_row_page(self, source: int, target: int) -> None:
        pages = self.arena.view(-1, self.row_page_bytes)
        pages[target] = pages[source]

    def forget_rows(self, row_pages: RowPages, page: int, rows: slice) -> None:
        """Keys and values of a page no longer in use; costs nothing unless poisoned."""
        if self._poison:
            for held in (row_pages.keys, row_pages.values):
                held.fill(page, rows, _NAN_BYTE)

    def forget_metadata(self, metadata: slice | torch.Tensor) -> None:
        """Marks no longer in use, likewise."""
        if self._poison:
            self.columns.scores[metadata] = torch.nan
            self.columns.positions[metadata] = torch.iinfo(torch.int32).min
            self.columns.flags[metadata] = 255

    def forget_row_pages(self, pages: Iterable[int]) -> None:
        if self._poison:
            for page in pages:
                self.arena.view(-1, self.row_page_bytes)[page] = _NAN_BYTE

    def forget_metadata_pages(self, pages: Iterable[int]) -> None:
        if self._poison:
            for page in pages:
                self.forget_metadata(self._span(page))

    def _span(self, page: int) -> slice:
        return slice(page * self.columns.page_rows, (page + 1) * self.columns.page_rows)

"""Tables of pages: all sequences' at fixed addresses, and one sequence's view of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from kvstore.cache import LayerShape
from kvstore.kernels.head_tables import HeadTables
from kvstore.kernels.row_pages import RowIndex, RowPages
from kvstore.pool.page_reservation import PageReservation
from kvstore.pool.reservation import PageCount, Reservation
from kvstore.pool.storage import PageStorage
from kvstore.rule_table import full_rules


def head_tables(
    shapes: Sequence[LayerShape], sequences: int, pages: int, page_rows: int
) -> HeadTables:
    """Tables for so many sequences of at most `pages` pages a head; untouched ones cost nothing."""
    kv_heads = np.array([shape.kv_heads for shape in shapes], np.int32)
    size = (sequences, len(shapes), int(kv_heads.max(initial=0)))
    return HeadTables(
        kv_heads=kv_heads,
        pages=np.zeros((*size, pages), np.int32),
        metadata=np.zeros((*size, pages), np.int32),
        rows=np.zeros(size, np.int32),
        has_metadata=np.zeros(size, np.bool_),
        weighted=np.zeros(size, np.bool_),
        rules=full_rules(size),
        lengths=np.zeros(sequences, np.int64),
        page_rows=np.full(sequences, page_rows, np.int64),
    )


class PageTables:
    """One sequence's part of the tables; see `HeadTables`.

    A head holds exactly the pages that its rows need, the first of its `pages`, and the
    metadata pages for as many rows where it has metadata.
    """

    def __init__(
        self,
        tables: HeadTables,
        slot: int,
        reservation: Reservation,
        storage: PageStorage,
        row_pages: RowPages,
    ) -> None:
        tables.page_rows[slot] = row_pages.page_rows
        self.kv_heads = tables.kv_heads
        self.pages = tables.pages[slot]
        self.metadata = tables.metadata[slot]
        self.rows = tables.rows[slot]
        self.has_metadata = tables.has_metadata[slot]
        self.weighted = tables.weighted[slot]
        self.rules = tables.rules[slot]
        self._reservation = reservation
        self._storage = storage
        self._row_pages = row_pages
        self._page_rows = row_pages.page_rows
        self._metadata_rows = storage.columns.page_rows

    def need(self, rows: NDArray[np.int32]) -> PageCount:
        """Pages missing for `rows` `[L, H]`."""
        more = (self._pages_of(rows) - self._pages_of(self.rows)).clip(0)
        more_marks = (self._metadata_pages_of(rows) - self._metadata_pages_of(self.rows)).clip(0)
        return PageCount(int(more.sum()), int(more_marks.sum()))

    def extend(self, rows: NDArray[np.int32]) -> None:
        """Take the pages that `rows` `[L, H]` need; the rows held stay as they are."""
        for pages, reservation, have, need in self._kinds(rows):
            for layer, head in np.argwhere(need > have).tolist():
                span = slice(int(have[layer, head]), int(need[layer, head]))
                self._take(pages[layer, head], span, reservation)

    def trim(self, rows: NDArray[np.int32]) -> None:
        """Hold exactly `rows` `[L, H]` from now on; pages no longer needed go back."""
        for layer, head in np.argwhere(rows < self.rows).tolist():
            self._forget(layer, head, int(rows[layer, head]))
        for pages, reservation, have, need in self._kinds(rows):
            for layer, head in np.argwhere(need < have).tolist():
                surplus = slice(int(need[layer, head]), int(have[layer, head]))
                reservation.give_back(pages[layer, head, surplus].tolist())
        self.rows[...] = rows

    def make_private(self, layer: int, head: int, number: int) -> None:
        """Copy a page that another sequence reads too, before it is written."""
        page = int(self.pages[layer, head, number])
        (own,) = self._reservation.rows.take(1)
        self._storage.copy_row_page(page, own)
        self.pages[layer, head, number] = own
        self._reservation.rows.give_back([page])

    def copy_from(self, other: PageTables) -> None:
        """Become a fork: share the row pages, and copy metadata into pages of the reservation."""
        for mine, theirs in (
            (self.rules, other.rules),
            (self.has_metadata, other.has_metadata),
            (self.weighted, other.weighted),
        ):
            mine[...] = theirs
        used = int(other._pages_of(other.rows).max(initial=0))
        self.pages[..., :used] = other.pages[..., :used]
        for layer, head, slots in other.heads_with_metadata():
            count = -(-len(slots) // self._metadata_rows)
            self._take(self.metadata[layer, head], slice(0, count), self._reservation.metadata)
            mine_at, theirs_at = (t.metadata_index(layer, head, slots) for t in (self, other))
            columns = self._storage.columns
            weighted = (columns.log_weights,) if self.weighted[layer, head] else ()
            for column in (columns.positions, columns.scores, columns.flags, *weighted):
                # torch refuses a view of the column as what is scattered into it
                column[mine_at] = column[theirs_at].clone()
        other._reservation.rows.share_with(self._reservation.rows)
        self.rows[...] = other.rows

    def heads_with_metadata(self) -> Iterator[tuple[int, int, range]]:
        """Yield layer, head and slots of every head that has metadata."""
        for layer, head in np.argwhere(self.has_metadata).tolist():
            yield layer, head, range(int(self.rows[layer, head]))

    def shared_pages(self) -> bool:
        """Whether another sequence reads any of the row pages."""
        used = np.arange(self.pages.shape[-1]) < self._pages_of(self.rows)[..., None]
        is_shared = self._reservation.rows.is_shared
        return any(is_shared(page) for page in self.pages[used].tolist())

    def is_shared(self, page: int) -> bool:
        return self._reservation.rows.is_shared(page)

    def index(self, layer: int, head: int, slots: range) -> RowIndex:
        """Return the index of these slots' keys and values in the row pages."""
        return self._row_pages.index(self.pages[layer, head], np.arange(slots.start, slots.stop))

    def metadata_index(self, layer: int, head: int, slots: range) -> torch.Tensor:
        """Return flat rows of these slots' metadata, int64."""
        columns, numbers = self._storage.columns, np.arange(slots.start, slots.stop)
        flat = columns.flat(self.metadata[layer, head], numbers)
        return torch.from_numpy(flat).to(columns.positions.device)

    def clear(self) -> None:
        """Forget everything, after the reservation was released."""
        self.rows[...] = 0
        self.has_metadata[...] = False
        self.weighted[...] = False
        self.rules[...] = full_rules(self.rows.shape)

    def _kinds(
        self, rows: NDArray[np.int32]
    ) -> Iterator[tuple[NDArray[np.int32], PageReservation, NDArray[np.int32], NDArray[np.int32]]]:
        """Yield, for row and metadata pages: table, reservation, pages held, pages needed."""
        reserved = self._reservation
        yield self.pages, reserved.rows, self._pages_of(self.rows), self._pages_of(rows)
        have, need = self._metadata_pages_of(self.rows), self._metadata_pages_of(rows)
        yield self.metadata, reserved.metadata, have, need

    def _take(self, pages: NDArray[np.int32], span: slice, reservation: PageReservation) -> None:
        after = int(pages[span.start - 1]) if span.start else None
        pages[span] = reservation.take(span.stop - span.start, after)

    def _forget(self, layer: int, head: int, rows: int) -> None:
        """Slots from `rows` on are not held any more."""
        last, size = int(self.rows[layer, head]), self._page_rows
        # pages beyond the first are given back as they are
        first, end = rows % size, min(last - rows // size * size, size)
        page = int(self.pages[layer, head, rows // size])
        if first and not self._reservation.rows.is_shared(page):
            self._storage.forget_rows(self._row_pages, page, slice(first, end))
        slots = range(rows, min(last, -(-rows // self._metadata_rows) * self._metadata_rows))
        if slots and self.has_metadata[layer, head]:
            self._storage.forget_metadata(self.metadata_index(layer, head, slots))

    def _pages_of(self, rows: NDArray[np.int32]) -> NDArray[np.int32]:
        return -(-rows // self._page_rows)

    def _metadata_pages_of(self, rows: NDArray[np.int32]) -> NDArray[np.int32]:
        return np.where(self.has_metadata, -(-rows // self._metadata_rows), 0)

"""The pool: a fixed number of pages for the caches of many sequences of one model."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence

import torch

from kvstore.cache import LayerShape
from kvstore.errors import InvalidParameter, PoolExhausted
from kvstore.kernels.staged_rows import StagedRows
from kvstore.pool.accounts import PageAccounts
from kvstore.pool.bounds import pages_bound, pages_for
from kvstore.pool.page_reservation import PageReservation
from kvstore.pool.reservation import PageCount, Reservation
from kvstore.pool.sequence import SequencePages
from kvstore.pool.storage import PageStorage
from kvstore.pool.tables import head_tables
from kvstore.row_codecs import MODEL_ROWS, ElementCodec, RowCodec


class PagePool:
    """`pages` pages of keys and values, each of one KV head, allocated once.

    A page holds `page_rows` rows in the model's dtype, or as many coded rows as fit into the same
    bytes; sequences of all codecs share the pool. `metadata_pages` (by default as many as `pages`)
    hold positions, scores and flags of the heads whose rule needs them. A sequence uses only pages
    that it has reserved. At most `sequences` are open at once, each of `sequence_tokens` tokens at
    most (0: as many as the pages hold). `open` and the figures may be used from any thread.
    `poison` fills unused rows with NaN, for tests. All layers have one head size.
    """

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        *,
        pages: int,
        page_rows: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        metadata_pages: int | None = None,
        sequences: int = 256,
        sequence_tokens: int = 0,
        poison: bool = False,
    ) -> None:
        for field, value in (("pages", pages), ("page_rows", page_rows), ("sequences", sequences)):
            if value < 1:
                raise InvalidParameter(field, f"must be at least 1, not {value}")
        sizes = {shape.head_size for shape in shapes}
        if len(sizes) != 1:
            raise InvalidParameter("shapes", f"head sizes {sorted(sizes)}, a pool has one")
        self.shapes = tuple(shapes)
        self.pages = pages
        self.metadata_pages = pages if metadata_pages is None else metadata_pages
        self.page_rows = page_rows
        self.storage = PageStorage(
            pages, self.metadata_pages, page_rows, sizes.pop(), dtype, torch.device(device), poison
        )
        most = min(pages, self._most_pages(sequence_tokens)) if sequence_tokens else pages
        self.tables = head_tables(shapes, sequences, most, page_rows)
        self._rows = PageAccounts(pages, self.storage.forget_row_pages)
        self._metadata = PageAccounts(self.metadata_pages, self.storage.forget_metadata_pages)
        self._lock = threading.Lock()
        self._free_slots = list(range(sequences))[::-1]
        # by slot
        self._open: dict[int, SequencePages] = {}

    def open(
        self,
        length: int = 0,
        reserve: PageCount | None = None,
        codec: RowCodec = MODEL_ROWS,
        owner: str = "",
    ) -> SequencePages:
        """Open an empty sequence that has seen `length` tokens, with reserved pages.

        The rows are held under `codec`. `owner` names who holds the sequence. Raises
        `PoolExhausted` without any change.
        """
        row_pages = self.storage.row_pages(codec)
        reservation = Reservation(PageReservation(self._rows), PageReservation(self._metadata))
        reservation.ensure(reserve or PageCount())
        with self._lock:
            if self._free_slots:
                slot = self._free_slots.pop()
                opened = SequencePages(self, slot, reservation, length, row_pages, owner)
                self._open[slot] = opened
                return opened
        reservation.release()
        raise PoolExhausted(1, 0)

    def close_slot(self, slot: int) -> None:
        """Free a sequence's place in the tables; `SequencePages.release` calls this."""
        with self._lock:
            del self._open[slot]
            self._free_slots.append(slot)

    def new_staged_rows(self, slots: int) -> StagedRows:
        """Allocate memory for the rows of `slots` fed tokens."""
        return StagedRows.of(self.storage.unquantized, self.tables, slots)

    def bound(self, tokens: int, codec: RowCodec = MODEL_ROWS) -> PageCount:
        """Return the pages that suffice for `tokens` tokens under this codec; see `pages_bound`.

        Raises `InvalidParameter` for a codec of which a page holds no row.
        """
        return pages_bound(
            self.shapes, tokens, self.page_rows, self.storage.row_pages(codec).page_rows
        )

    def bytes_of(self, pages: PageCount) -> int:
        """Return the bytes of so many pages."""
        metadata = pages.metadata * self.storage.metadata_page_bytes
        return pages.rows * self.storage.row_page_bytes + metadata

    def bytes_by_owner(self) -> Counter[str]:
        """Return the bytes that each owner's open sequences use or reserve.

        Shared pages count for each sequence.
        """
        held: Counter[str] = Counter()
        for sequence in tuple(self._open.values()):
            reservation = sequence.reservation
            held[sequence.owner] += self.bytes_of(reservation.used + reservation.unused)
        return held

    @property
    def free_pages(self) -> int:
        """Row pages that are neither used nor reserved."""
        return self._rows.free

    @property
    def free(self) -> PageCount:
        """Pages of both kinds that are neither used nor reserved."""
        return PageCount(self._rows.free, self._metadata.free)

    @property
    def reserved_pages(self) -> int:
        """Row pages that are reserved and not in use."""
        return self._rows.reserved

    @property
    def used_pages(self) -> int:
        """Row pages in use; a shared page counts once."""
        return self._rows.used

    @property
    def used_metadata_pages(self) -> int:
        return self._metadata.used

    @property
    def sequences(self) -> int:
        """The number of open sequences."""
        return len(self.tables.lengths) - len(self._free_slots)

    @property
    def rows(self) -> int:
        """Rows held; shared rows count for each sequence."""
        return int(self.tables.rows.sum())

    @property
    def slack_rows(self) -> int:
        """Empty rows of used pages; shared pages count for each sequence."""
        tables = self.tables
        return int((-tables.rows % tables.page_rows[:, None, None]).sum())

    @property
    def fragmentation(self) -> float:
        """The share of empty rows in used pages; 0 for an empty pool."""
        slack, rows = self.slack_rows, self.rows
        return slack / (slack + rows) if rows else 0.0

    @property
    def resident_bytes(self) -> int:
        """Bytes of the used pages, metadata and empty rows included."""
        metadata = self.used_metadata_pages * self.storage.metadata_page_bytes
        return self.used_pages * self.storage.row_page_bytes + metadata

    @property
    def dense_bytes(self) -> int:
        """Bytes of keys and values of dense caches of the same sequences."""
        lengths = self.tables.lengths.tolist()
        rows = sum(shape.dense_rows(length) for length in lengths for shape in self.shapes)
        return rows * self.storage.unquantized.layout.row_bytes

    def _most_pages(self, tokens: int) -> int:
        """Return the pages that a head of `tokens` tokens may take under any codec."""
        codecs = [RowCodec(codec, codec) for codec in ElementCodec]
        return max(pages_for(tokens, self.storage.row_pages(codec).page_rows) for codec in codecs)

    @property
    def capacity_bytes(self) -> int:
        metadata = self.metadata_pages * self.storage.metadata_page_bytes
        return self.pages * self.storage.row_page_bytes + metadata

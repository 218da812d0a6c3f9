"""One KV head of one sequence: its pages, and how many rows lie in them."""

from __future__ import annotations

import torch

from kvstore.cache import HeadRows
from kvstore.kernels.retain import RowMarks
from kvstore.pool.bounds import pages_for
from kvstore.pool.reservation import Reservation
from kvstore.pool.storage import RowIndex, read_rows
from kvstore.rules import FULL_RULE, RetentionRule


class HeadPages:
    """Slots 0 to `rows` − 1 of a head, in no order of position, over a table of pages."""

    def __init__(self, reservation: Reservation) -> None:
        self.rule: RetentionRule = FULL_RULE
        self.rows = 0
        self.pages: list[int] = []
        self._reservation = reservation
        self._storage = reservation.storage
        self._index: RowIndex = slice(0, 0)

    @property
    def index(self) -> RowIndex:
        """The head's flat rows: a slice where its pages follow one another, else int64 `[R]`."""
        return self._index

    def missing_pages(self, rows: int) -> int:
        """Pages to take before the head can hold `rows` rows."""
        return max(0, pages_for(rows, self._storage.page_rows) - len(self.pages))

    def flat(self, slot: int) -> int:
        """The flat row of a slot."""
        page, row = divmod(slot, self._storage.page_rows)
        return self.pages[page] * self._storage.page_rows + row

    def extend(self, rows: int) -> None:
        """Take the pages that `rows` rows need; the rows held stay as they are."""
        missing = self.missing_pages(rows)
        if missing:
            after = self.pages[-1] if self.pages else None
            self.pages += self._reservation.take(missing, after)

    def settle(self, rows: int) -> None:
        """Hold exactly `rows` rows from now on; pages no longer needed go back."""
        needed = pages_for(rows, self._storage.page_rows)
        dropped = [self.flat(slot) for slot in range(rows, self.rows)]
        self._storage.forget(self._storage.index(dropped))
        if needed < len(self.pages):
            self._reservation.give_back(self.pages[needed:])
            del self.pages[needed:]
        if rows != self.rows:
            self._reservation.count_rows(rows - self.rows)
            self.rows = rows
            self._index = self._find_index()

    def read(self) -> HeadRows:
        """All rows: views where the pages follow one another, else gathered copies."""
        marks = self.marks()
        return HeadRows(
            self.rule,
            read_rows(self._storage.keys, self._index),
            read_rows(self._storage.values, self._index),
            marks.positions,
            marks.scores,
            marks.flags,
        )

    def marks(self) -> RowMarks:
        """What the head's rule looks at, as `read` gives it."""
        storage = self._storage
        return RowMarks(
            read_rows(storage.positions, self._index),
            read_rows(storage.scores, self._index) if self.rule.needs_scores else None,
            read_rows(storage.flags, self._index) if self.rule.needs_flags else None,
        )

    def _find_index(self) -> RowIndex:
        page_rows = self._storage.page_rows
        first = self.pages[0] if self.pages else 0
        if self.pages == list(range(first, first + len(self.pages))):
            return slice(first * page_rows, first * page_rows + self.rows)
        starts = torch.tensor(self.pages, device=self._storage.keys.device) * page_rows
        rows = torch.arange(page_rows, device=starts.device)
        return (starts[:, None] + rows).flatten()[: self.rows]

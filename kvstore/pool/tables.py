"""One sequence's tables: the pages of each head, how many rows lie in them, and its rule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kvstore.cache import LayerShape
from kvstore.pool.reservation import Reservation
from kvstore.pool.storage import RowIndex
from kvstore.rule_table import full_rules

# room per head at first; it doubles
_FIRST_PAGES = 4


class PageTables:
    """Arrays over (layer, KV head); a layer with fewer than H heads leaves its last ones empty.

    `pages` int32 `[L, H, P]`, `rows` int32 `[L, H]`, `rules` `[L, H]` of `RULE_DTYPE`, `kv_heads`
    int32 `[L]`. A head holds exactly the pages that its rows need, the first of its `pages`.
    """

    def __init__(self, reservation: Reservation, shapes: Sequence[LayerShape]) -> None:
        self.kv_heads = np.array([shape.kv_heads for shape in shapes], np.int32)
        size = len(shapes), int(self.kv_heads.max(initial=0))
        self.pages = np.zeros((*size, _FIRST_PAGES), np.int32)
        self.rows = np.zeros(size, np.int32)
        self.rules = full_rules(size)
        self._reservation = reservation
        self._storage = reservation.storage
        self._page_rows = reservation.storage.page_rows

    def with_layer(self, layer: int, counts: Sequence[int]) -> NDArray[np.int32]:
        """`rows` as they would be with these in one layer."""
        rows = self.rows.copy()
        rows[layer, : len(counts)] = counts
        return rows

    def require(self, rows: NDArray[np.int32]) -> None:
        """Raise `PoolExhausted` unless the reservation has the pages for `rows` `[L, H]`."""
        self._reservation.require(int((self._pages_of(rows) - self._pages_of()).clip(0).sum()))

    def extend(self, rows: NDArray[np.int32]) -> bool:
        """Take the pages that `rows` `[L, H]` need, and say whether that were any.

        The rows held stay as they are.
        """
        have, need = self._pages_of(), self._pages_of(rows)
        self._make_room(int(need.max(initial=0)))
        growing = np.argwhere(need > have).tolist()
        for layer, head in growing:
            first, last = int(have[layer, head]), int(need[layer, head])
            after = int(self.pages[layer, head, first - 1]) if first else None
            self.pages[layer, head, first:last] = self._reservation.take(last - first, after)
        return bool(growing)

    def settle(self, rows: NDArray[np.int32]) -> None:
        """Hold exactly `rows` `[L, H]` from now on; pages no longer needed go back."""
        have, need = self._pages_of(), self._pages_of(rows)
        for layer, head in np.argwhere(rows < self.rows).tolist():
            slots = range(int(rows[layer, head]), int(self.rows[layer, head]))
            self._storage.forget(self.index(layer, head, slots))
        for layer, head in np.argwhere(need < have).tolist():
            surplus = self.pages[layer, head, need[layer, head] : have[layer, head]]
            self._reservation.give_back(surplus.tolist())
        self._reservation.count_rows(int(rows.sum() - self.rows.sum()))
        self.rows = rows

    def index(self, layer: int, head: int, slots: range) -> RowIndex:
        """Flat rows of these slots: a slice where they follow one another."""
        numbers = np.arange(slots.start, slots.stop)
        pages = self.pages[layer, head, numbers // self._page_rows].astype(np.int64)
        return self._storage.index(pages * self._page_rows + numbers % self._page_rows)

    def clear(self) -> None:
        """Forget everything, after the reservation was released."""
        self.rows = np.zeros_like(self.rows)
        self.rules = full_rules(self.rows.shape)

    def _pages_of(self, rows: NDArray[np.int32] | None = None) -> NDArray[np.int32]:
        return -(-(self.rows if rows is None else rows) // self._page_rows)

    def _make_room(self, pages: int) -> None:
        room = self.pages.shape[2]
        if pages > room:
            more = max(pages, 2 * room) - room
            self.pages = np.pad(self.pages, ((0, 0), (0, 0), (0, more)))

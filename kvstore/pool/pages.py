"""The pool: a fixed number of pages of one head size and dtype."""

from __future__ import annotations

import torch

from kvstore.errors import InvalidParameter
from kvstore.pool.accounts import PageAccounts
from kvstore.pool.reservation import Reservation
from kvstore.pool.storage import PageStorage


class PagePool:
    """`pages` pages of `page_rows` rows of one KV head each, allocated once.

    Pages are used only out of a reservation, so what was admitted never runs out of room.
    `reserve` and the figures may be used from any thread. `poison` fills rows that are not in
    use with NaN, for tests.
    """

    def __init__(
        self,
        pages: int,
        page_rows: int,
        head_size: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        *,
        poison: bool = False,
    ) -> None:
        for field, value in (("pages", pages), ("page_rows", page_rows), ("head_size", head_size)):
            if value < 1:
                raise InvalidParameter(field, f"must be at least 1, not {value}")
        self.pages = pages
        self.page_rows = page_rows
        self.head_size = head_size
        self._storage = PageStorage(
            pages, page_rows, head_size, dtype, torch.device(device), poison
        )
        self._accounts = PageAccounts(pages)

    def reserve(self, pages: int) -> Reservation:
        """Claim `pages` pages, or raise `PoolExhausted` and claim none."""
        if pages < 0:
            raise InvalidParameter("pages", f"must not be negative, not {pages}")
        return Reservation(self._storage, self._accounts, pages)

    @property
    def free_pages(self) -> int:
        """Pages nobody has a claim to."""
        return self._accounts.free

    @property
    def reserved_pages(self) -> int:
        """Pages claimed and not in use."""
        return self._accounts.reserved

    @property
    def used_pages(self) -> int:
        return self._accounts.used

    @property
    def rows(self) -> int:
        """Rows held in the used pages."""
        return self._accounts.rows

    @property
    def page_bytes(self) -> int:
        """Bytes of one page, positions, scores and flags included."""
        return self._storage.page_bytes

    @property
    def resident_bytes(self) -> int:
        """Bytes of the used pages."""
        return self.used_pages * self.page_bytes

    @property
    def capacity_bytes(self) -> int:
        return self.pages * self.page_bytes

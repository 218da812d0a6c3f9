"""A sequence's reservation: row pages, and metadata pages for heads whose rows may leave."""

from __future__ import annotations

import dataclasses

from kvstore.pool.page_reservation import PageReservation


@dataclasses.dataclass(frozen=True, slots=True)
class PageCount:
    """A number of row pages and of metadata pages."""

    rows: int = 0
    metadata: int = 0

    def __add__(self, other: PageCount) -> PageCount:
        return PageCount(self.rows + other.rows, self.metadata + other.metadata)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Reservation:
    """Reservations of both kinds. Each method changes both or, raising `PoolExhausted`, neither."""

    rows: PageReservation
    metadata: PageReservation

    @property
    def used(self) -> PageCount:
        """Pages in use, shared pages included."""
        return PageCount(self.rows.used, self.metadata.used)

    @property
    def unused(self) -> PageCount:
        """Pages reserved and not in use."""
        return PageCount(self.rows.unused, self.metadata.unused)

    def ensure(self, unused: PageCount) -> None:
        """Reserve pages until at least `unused` are unused."""
        missing = max(0, unused.rows - self.rows.unused)
        self.rows.reserve(missing)
        try:
            self.metadata.ensure(unused.metadata)
        except BaseException:
            self.rows.trim_to(self.rows.unused - missing)
            raise

    def require(self, unused: PageCount) -> None:
        """Raise `PoolExhausted` unless at least `unused` pages are unused."""
        self.rows.require(unused.rows)
        self.metadata.require(unused.metadata)

    def trim_to(self, unused: PageCount) -> None:
        """Return reserved pages beyond `unused`."""
        self.rows.trim_to(unused.rows)
        self.metadata.trim_to(unused.metadata)

    def release(self) -> None:
        """Return all pages. Further calls do nothing."""
        self.rows.release()
        self.metadata.release()

"""What a sequence may use of the pool: row pages, and mark pages for the heads that need marks."""

from __future__ import annotations

import dataclasses

from kvstore.pool.page_reservation import PageReservation


@dataclasses.dataclass(frozen=True, slots=True)
class PageCount:
    """Pages of both kinds."""

    rows: int = 0
    marks: int = 0

    def __add__(self, other: PageCount) -> PageCount:
        return PageCount(self.rows + other.rows, self.marks + other.marks)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Reservation:
    """A claim of either kind. Each method changes both or, raising `PoolExhausted`, neither."""

    rows: PageReservation
    marks: PageReservation

    @property
    def used(self) -> PageCount:
        return PageCount(self.rows.used, self.marks.used)

    @property
    def unused(self) -> PageCount:
        return PageCount(self.rows.unused, self.marks.unused)

    def ensure(self, unused: PageCount) -> None:
        """Have at least so many pages promised and unused."""
        missing = max(0, unused.rows - self.rows.unused)
        self.rows.promise(missing)
        try:
            self.marks.ensure(unused.marks)
        except BaseException:
            self.rows.keep(self.rows.unused - missing)
            raise

    def require(self, unused: PageCount) -> None:
        """Raise `PoolExhausted` unless so many pages are unused."""
        self.rows.require(unused.rows)
        self.marks.require(unused.marks)

    def keep(self, unused: PageCount) -> None:
        """Let go of what is promised beyond `unused`."""
        self.rows.keep(unused.rows)
        self.marks.keep(unused.marks)

    def release(self) -> None:
        """Hand everything back. Further calls do nothing."""
        self.rows.release()
        self.marks.release()

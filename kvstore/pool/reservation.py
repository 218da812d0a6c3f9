"""A sequence's claim to a number of pages."""

from __future__ import annotations

from types import TracebackType

from kvstore.errors import PoolExhausted
from kvstore.pool.accounts import PageAccounts
from kvstore.pool.storage import PageStorage


class Reservation:
    """A claim to `pages` pages, of which some are in use; released at the end of a `with` block.

    Only its owner uses it and what it took: whoever feeds the sequence also releases it, between
    two steps. So no write can come after the release, and freed pages need no wiping before
    another sequence gets them.
    """

    def __init__(self, storage: PageStorage, accounts: PageAccounts, pages: int) -> None:
        accounts.reserve(pages)
        self.storage = storage
        self._accounts = accounts
        self._pages = pages
        self._taken: set[int] = set()
        self._rows = 0

    @property
    def pages(self) -> int:
        """Pages claimed, in use or not."""
        return self._pages

    @property
    def used_pages(self) -> int:
        return len(self._taken)

    @property
    def unused_pages(self) -> int:
        return self._pages - len(self._taken)

    @property
    def rows(self) -> int:
        """Rows its owner holds in the used pages."""
        return self._rows

    def take(self, count: int, after: int | None = None) -> list[int]:
        """Use pages of the claim, next to page `after` if that can be; raises `PoolExhausted`."""
        self.require(count)
        taken = self._accounts.take(count, after)
        self._taken.update(taken)
        return taken

    def require(self, count: int) -> None:
        """Raise `PoolExhausted` unless `count` pages of the claim are unused."""
        if count > self.unused_pages:
            raise PoolExhausted(count, self.unused_pages)

    def give_back(self, pages: list[int]) -> None:
        """Used pages become unused; the claim to as many stays."""
        assert self._taken.issuperset(pages), "only pages taken here come back here"
        self._taken.difference_update(pages)
        self.storage.forget_pages(pages)
        self._accounts.give_back(pages)

    def grow(self, pages: int) -> None:
        """Raise the claim to at least `pages`; raises `PoolExhausted`, and then nothing changed."""
        if pages > self._pages:
            self._accounts.reserve(pages - self._pages)
            self._pages = pages

    def shrink(self, pages: int) -> None:
        """Lower the claim to `pages`, or to what is in use if that is more."""
        surplus = self._pages - max(pages, self.used_pages)
        if surplus > 0:
            self._accounts.unreserve(surplus)
            self._pages -= surplus

    def count_rows(self, change: int) -> None:
        """Tell the accounts that so many more rows are held, or fewer."""
        self._rows += change
        self._accounts.count_rows(change)

    def release(self) -> None:
        """Hand everything back. Further calls do nothing."""
        self.give_back(sorted(self._taken))
        self.shrink(0)
        self.count_rows(-self._rows)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

"""Pages of one kind that a sequence uses or has reserved."""

from __future__ import annotations

from collections.abc import Iterable

from kvstore.errors import PoolExhausted
from kvstore.pool.accounts import PageAccounts


class PageReservation:
    """Pages in use, some of them shared with other sequences, and reserved pages beyond them.

    One owner uses the reservation and its pages: the engine that feeds the sequence also releases
    it, between two steps. No write can follow the release, so freed pages are not wiped before
    another sequence takes them.
    """

    def __init__(self, accounts: PageAccounts) -> None:
        self._accounts = accounts
        self._unused = 0
        self._taken: set[int] = set()
        self._lent = 0

    @property
    def used(self) -> int:
        """Pages in use, shared and lent pages included."""
        return len(self._taken) + self._lent

    @property
    def unused(self) -> int:
        """Pages reserved and not in use."""
        return self._unused

    def reserve(self, pages: int) -> None:
        """Reserve `pages` more pages; raises `PoolExhausted` without any change."""
        self._accounts.reserve(pages)
        self._unused += pages

    def ensure(self, unused: int) -> None:
        """Reserve pages until `unused` are unused; raises `PoolExhausted` without any change."""
        if unused > self._unused:
            self.reserve(unused - self._unused)

    def require(self, count: int) -> None:
        """Raise `PoolExhausted` unless `count` pages are unused."""
        if count > self._unused:
            raise PoolExhausted(count, self._unused)

    def trim_to(self, unused: int) -> None:
        """Return reserved pages beyond `unused`."""
        surplus = self._unused - unused
        if surplus > 0:
            self._accounts.unreserve(surplus)
            self._unused -= surplus

    def take(self, count: int, after: int | None = None) -> list[int]:
        """Use reserved pages, following page `after` if possible; raises `PoolExhausted`."""
        self.require(count)
        taken = self._accounts.take(count, after)
        self._unused -= count
        self._taken.update(taken)
        return taken

    def share_with(self, other: PageReservation) -> None:
        """Let another sequence use all pages in use here."""
        self._accounts.share(self._taken)
        other._taken |= self._taken

    def lend(self, lent: set[int]) -> None:
        """Add all pages in use to `lent`, whose lenders get any of its pages back.

        As many are in use here as before. Before `end_loan` pages are only taken by `lend_more`.
        """
        lent |= self._taken
        self._lent += len(self._taken)
        self._taken = set()

    def lend_more(self, count: int, lent: set[int]) -> list[int]:
        """Use reserved pages, and lend them too; raises `PoolExhausted`."""
        taken = self.take(count)
        self.lend(lent)
        return taken

    def end_loan(self, pages: Iterable[int], spare: Iterable[int], lent: set[int]) -> None:
        """Take back as many pages as were lent: use `pages`, and reserve as many as `spare`."""
        spare = list(spare)
        self._taken = {*pages, *spare}
        assert len(self._taken) == self._lent, "as many pages come back as were lent"
        assert lent.issuperset(self._taken), "only lent pages come back"
        lent -= self._taken
        self._lent = 0
        self.give_back(spare)

    def is_shared(self, page: int) -> bool:
        """Whether another sequence uses the page too."""
        return self._accounts.is_shared(page)

    def give_back(self, pages: Iterable[int]) -> None:
        """Stop using pages; those without another user are reserved here again."""
        pages = list(pages)
        assert self._taken.issuperset(pages), "only pages in use are given back"
        self._taken.difference_update(pages)
        self._unused += self._accounts.give_back(pages)

    def release(self) -> None:
        """Return all pages. Further calls do nothing."""
        self.give_back(sorted(self._taken))
        self.trim_to(0)

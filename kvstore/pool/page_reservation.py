"""A sequence's claim to pages of one kind."""

from __future__ import annotations

from collections.abc import Iterable

from kvstore.errors import PoolExhausted
from kvstore.pool.accounts import PageAccounts


class PageReservation:
    """Pages in use, some perhaps shared with other sequences, and pages promised beyond them.

    Only its owner uses it and what it took: whoever feeds the sequence also releases it, between
    two steps. So no write can come after the release, and freed pages need no wiping before
    another sequence gets them.
    """

    def __init__(self, accounts: PageAccounts) -> None:
        self._accounts = accounts
        self._unused = 0
        self._taken: set[int] = set()

    @property
    def used(self) -> int:
        """Pages in use, shared ones among them."""
        return len(self._taken)

    @property
    def unused(self) -> int:
        """Pages promised and not in use."""
        return self._unused

    def promise(self, pages: int) -> None:
        """Have `pages` more; raises `PoolExhausted`, and then nothing changed."""
        self._accounts.reserve(pages)
        self._unused += pages

    def ensure(self, unused: int) -> None:
        """Have at least so many unused; raises `PoolExhausted`, and then nothing changed."""
        if unused > self._unused:
            self.promise(unused - self._unused)

    def require(self, count: int) -> None:
        """Raise `PoolExhausted` unless `count` pages are unused."""
        if count > self._unused:
            raise PoolExhausted(count, self._unused)

    def keep(self, unused: int) -> None:
        """Let go of what is promised beyond `unused`."""
        surplus = self._unused - unused
        if surplus > 0:
            self._accounts.unreserve(surplus)
            self._unused -= surplus

    def take(self, count: int, after: int | None = None) -> list[int]:
        """Use promised pages, next to page `after` if that can be; raises `PoolExhausted`."""
        self.require(count)
        taken = self._accounts.take(count, after)
        self._unused -= count
        self._taken.update(taken)
        return taken

    def share_with(self, other: PageReservation) -> None:
        """Let another sequence use all these pages too."""
        self._accounts.share(self._taken)
        other._taken |= self._taken

    def exchange(self, pages: Iterable[int]) -> None:
        """Use these pages now, as many as before: other claims use those that were used here.

        All claims that exchange among each other do so before any of them is used otherwise.
        """
        taken = set(pages)
        assert len(taken) == len(self._taken), "nobody gains or loses a page"
        self._taken = taken

    def is_shared(self, page: int) -> bool:
        return self._accounts.is_shared(page)

    def give_back(self, pages: Iterable[int]) -> None:
        """Stop using pages; those nobody else uses are promised to this claim again."""
        pages = list(pages)
        assert self._taken.issuperset(pages), "only pages in use here come back here"
        self._taken.difference_update(pages)
        self._unused += self._accounts.give_back(pages)

    def release(self) -> None:
        """Hand everything back. Further calls do nothing."""
        self.give_back(sorted(self._taken))
        self.keep(0)

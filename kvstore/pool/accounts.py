"""Accounts of the pages of one kind: free, reserved or in use, and their users."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import numpy as np

from kvstore.errors import PoolExhausted


class PageAccounts:
    """Counts of free, reserved and used pages, which always add up to all pages.

    Each method is atomic, so that an event loop can reserve and release while an engine thread
    takes pages out of other reservations. `forget` is called with pages that have lost their last
    user, before another sequence can take them.
    """

    def __init__(self, pages: int, forget: Callable[[Iterable[int]], None]) -> None:
        self.pages = pages
        self._forget = forget
        self._idle = bytearray(b"\x01" * pages)
        self._users = np.zeros(pages, np.int32)
        self._lock = threading.Lock()
        self._reserved = 0
        self._used = 0

    @property
    def reserved(self) -> int:
        return self._reserved

    @property
    def used(self) -> int:
        return self._used

    @property
    def free(self) -> int:
        with self._lock:
            return self._free()

    def reserve(self, count: int) -> None:
        """Reserve pages; raises `PoolExhausted`."""
        with self._lock:
            if count > self._free():
                raise PoolExhausted(count, self._free())
            self._reserved += count

    def unreserve(self, count: int) -> None:
        with self._lock:
            assert 0 <= count <= self._reserved, "only reserved pages are unreserved"
            self._reserved -= count

    def take(self, count: int, after: int | None) -> list[int]:
        """Turn reserved pages into used ones, and return their numbers.

        The pages are consecutive, following page `after`, if such pages are idle: rows in
        consecutive pages are read as a view instead of a copy.
        """
        with self._lock:
            assert 0 <= count <= self._reserved, "pages are taken out of a reservation"
            taken = self._run(count, after) or self._scattered(count)
            for page in taken:
                self._idle[page] = 0
                self._users[page] = 1
            self._reserved -= count
            self._used += count
            return taken

    def share(self, pages: Iterable[int]) -> None:
        """Add one user to each of these used pages."""
        with self._lock:
            for page in pages:
                assert not self._idle[page], "only used pages are shared"
                self._users[page] += 1

    def is_shared(self, page: int) -> bool:
        """Whether several sequences use the page, so that it must not be written."""
        return bool(self._users[page] > 1)

    def give_back(self, pages: Iterable[int]) -> int:
        """Remove one user from each page; return how many pages became reserved by it."""
        with self._lock:
            last = []
            for page in pages:
                assert not self._idle[page], "a page is given back once"
                self._users[page] -= 1
                if not self._users[page]:
                    self._idle[page] = 1
                    last.append(page)
            self._forget(last)
            self._used -= len(last)
            self._reserved += len(last)
            return len(last)

    def _free(self) -> int:
        return self.pages - self._reserved - self._used

    def _run(self, count: int, after: int | None) -> list[int]:
        wanted = b"\x01" * count
        if after is not None and self._idle[after + 1 : after + 1 + count] == wanted:
            return list(range(after + 1, after + 1 + count))
        first = self._idle.find(wanted)
        return list(range(first, first + count)) if first >= 0 else []

    def _scattered(self, count: int) -> list[int]:
        taken: list[int] = []
        page = -1
        for _ in range(count):
            page = self._idle.find(1, page + 1)
            taken.append(page)
        return taken

"""The sequences that give up their pages while they run."""

from __future__ import annotations

from typing import Protocol

from kvstore.pool import PageCount, PagePool, SequencePages


class Preemptible(Protocol):
    """A running sequence that can be moved to host memory and back."""

    @property
    def owner(self) -> str:
        """The tenant of the sequence."""

    @property
    def pages(self) -> SequencePages | None:
        """The sequence's pages; None while the sequence is in host memory."""

    @property
    def swapped_bytes(self) -> int:
        """Bytes that the sequence occupies in host memory."""

    def swap_out(self) -> None:
        """Copy the cache to host memory and release the pages."""

    def swap_in(self, pool: PagePool, spare: PageCount) -> None:
        """Load the cache again, with `spare` pages to grow into; raises `PoolExhausted`."""

    def fail(self, error: Exception) -> None:
        """Report an error to the request."""

    def cancel(self) -> None:
        """End the sequence."""

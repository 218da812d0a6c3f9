"""Room is reserved before prefill is asked for anything."""

from __future__ import annotations

from headwise.errors import InvalidRequest, Overloaded
from kvstore.cache import LayerShape
from kvstore.pool import PagePool, SequencePages, pages_bound
from services.decode.generation import GenerationSpec
from services.runtime.status import RETRY_AFTER_SECONDS


class Admission:
    """Counts sequences and reserves their pages. Used on the event loop alone."""

    def __init__(
        self, pool: PagePool, shapes: tuple[LayerShape, ...], *, max_sequences: int
    ) -> None:
        self._pool = pool
        self._shapes = shapes
        self._max_sequences = max_sequences
        self._held: set[SequencePages] = set()

    @property
    def sequences(self) -> int:
        """Sequences that hold or reserve pages."""
        return len(self._held)

    @property
    def dense_bytes(self) -> int:
        """Bytes that dense caches of all admitted sequences' tokens would occupy."""
        return sum(pages.dense_bytes for pages in tuple(self._held))

    def admit(self, spec: GenerationSpec) -> SequencePages:
        """Reserve what the sequence needs if every head keeps everything.

        Raises `Overloaded`, or `InvalidRequest` for what would not fit an empty pool. `leave` must
        follow once the pages are released.
        """
        needed = pages_bound(self._shapes, spec.final_tokens, self._pool.page_rows)
        if needed > self._pool.pages:
            raise InvalidRequest(
                f"{spec.final_tokens} tokens need {needed} pages, the whole pool has "
                f"{self._pool.pages}",
                "SEQUENCE_TOO_LONG",
                {"field": "max_tokens"},
            )
        if len(self._held) >= self._max_sequences:
            raise Overloaded(
                f"{len(self._held)} generations are running already",
                "TOO_MANY_SEQUENCES",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        prompt = len(spec.token_ids) - 1
        pages = SequencePages(self._pool.reserve(needed), self._shapes, prompt)
        self._held.add(pages)
        return pages

    def leave(self, pages: SequencePages) -> None:
        """These pages have been released."""
        self._held.remove(pages)

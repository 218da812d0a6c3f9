"""The role of an origin: the cache that a generation starts from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from kvstore.pool import SequencePages
from kvstore.row_codecs import RowCodec
from services.decode.engine.sequence import Keep
from services.decode.generation import GenerationSpec, HeldTokens
from services.decode.report import TransferReport

OpenPages = Callable[[], SequencePages]
# waits in the admission queue until the pages can be opened, and opens them
Admit = Callable[[OpenPages], Awaitable[SequencePages]]


class Origin(Protocol):
    """The cache that one generation starts from; used in the order of the methods."""

    @property
    def held(self) -> HeldTokens:
        """The tokens that the cache already holds, before the request's prompt."""

    def codec(self, spec: GenerationSpec) -> RowCodec:
        """Return the codec of the sequence's rows."""

    def expected_bytes(self, spec: GenerationSpec) -> int:
        """Return the bytes that the sequence will probably add to what its tenant holds."""

    async def open(self, spec: GenerationSpec, admit: Admit) -> SequencePages:
        """Return the sequence's pages, which belong to the caller, opened through `admit`."""

    async def fill(
        self, spec: GenerationSpec, pages: SequencePages, timeout_seconds: float | None
    ) -> TransferReport:
        """Complete the cache of all tokens that the engine does not feed.

        The report says what the transfer of the cache cost this generation.
        """

    def keep_first(self, spec: GenerationSpec, as_new_session: Keep | None) -> Keep | None:
        """Return what keeps the first answer's cache; None to release it.

        `as_new_session` keeps a cache as the request asks, and is None where it does not ask.
        """

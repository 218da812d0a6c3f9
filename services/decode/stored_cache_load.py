"""Brings a stored cache into the pool."""

from __future__ import annotations

from headwise.v1 import cache_pb2
from kvstore.pool import PageCount, PagePool, SequencePages
from services.decode.engine.sequence import RunningSequence
from services.decode.link.prefill_source import PrefillSource
from services.decode.memory.arbiter import MemoryArbiter
from services.decode.memory.intake import Intake
from services.decode.memory.size_expectation import SizeExpectation
from services.decode.report import TransferReport
from services.runtime.serving.convert import recorded_codec


class ContextLoader:
    """Takes a place in line, as a generation would, and fetches."""

    def __init__(
        self,
        pool: PagePool,
        source: PrefillSource,
        arbiter: MemoryArbiter[RunningSequence],
        intake: Intake,
        expectation: SizeExpectation,
    ) -> None:
        self._pool = pool
        self._source = source
        self._arbiter = arbiter
        self._intake = intake
        self._expectation = expectation

    async def load(
        self, handle: str, stored: cache_pb2.StoredCache, namespace: str
    ) -> tuple[SequencePages, TransferReport]:
        """Raises what admission and the fetch raise."""
        codec = recorded_codec(stored.codec)
        expected = self._expectation.pages(stored.policy, stored.tokens, 0, codec)
        pages = await self._arbiter.admit(
            1, None, lambda: self._pool.open(stored.tokens, expected, codec)
        )
        try:
            received = await self._source.fetch(handle, stored, pages, namespace, self._intake)
            used = pages.reservation.used
            self._expectation.saw_prompt(stored.policy, stored.tokens, used, codec)
            pages.reservation.keep(PageCount())
        except BaseException:
            pages.release()
            raise
        finally:
            self._arbiter.leave()
        return pages, received

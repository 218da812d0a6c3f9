"""Brings caches from prefill into the pool: caches of new prompts, and stored caches."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Sequence

from headwise.v1 import cache_pb2
from kvstore.pool import PageCount, PagePool, SequencePages
from kvstore.row_codecs import RowCodec
from services.decode.engine.sequence import RunningSequence
from services.decode.link.prefill_source import PrefillSource
from services.decode.link.unsent_policy import require_policy
from services.decode.memory.arbiter import MemoryArbiter
from services.decode.memory.intake import Intake
from services.decode.memory.size_expectation import SizeExpectation
from services.decode.report import TransferReport
from services.runtime.security.identity import current_tenant
from services.runtime.serving.convert import recorded_codec


@dataclasses.dataclass(frozen=True, slots=True)
class ArrivingCache:
    """A cache that prefill is asked for, and the longest answer that is appended to it.

    `max_answer_tokens` is 0 for a cache that is only forked.
    """

    policy: cache_pb2.Policy
    tokens: int
    codec: RowCodec
    owner: str
    max_answer_tokens: int = 0


class ArrivingCaches:
    """Opens pages for caches, fills them from prefill, and returns what was reserved in excess."""

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

    async def require_policy(self, policy: cache_pb2.Policy) -> None:
        """Raise what prefill would raise for a policy, without asking for a cache."""
        await require_policy(policy, self._source.describe)

    def expected_bytes(self, cache: ArrivingCache) -> int:
        """Bytes of the pages that the cache and its longest answer will probably take."""
        pages = self._expectation.pages(
            cache.policy, cache.tokens, cache.max_answer_tokens, cache.codec, longest_answer=True
        )
        return self._pool.bytes_of(pages)

    def open(self, cache: ArrivingCache) -> SequencePages:
        """Reserve the expected pages. Raises `PoolExhausted`."""
        return self._pool.open(cache.tokens, self._expected_pages(cache), cache.codec, cache.owner)

    async def pull(
        self,
        cache: ArrivingCache,
        token_ids: Sequence[int],
        pages: SequencePages,
        namespace: str,
        timeout_seconds: float | None,
    ) -> TransferReport:
        """Fill `pages` with the cache of these tokens, which prefill computes or has stored."""
        transfer = self._source.pull(
            token_ids, cache.policy, pages, timeout_seconds, namespace, self._intake
        )
        return await self._fill(cache, pages, transfer)

    async def load_stored(
        self, handle: str, stored: cache_pb2.StoredCache, namespace: str
    ) -> tuple[SequencePages, TransferReport]:
        """Fetch a stored cache into new pages, which belong to the caller.

        The load waits for room in the admission queue, as a generation does. Raises what admission
        and the fetch raise.
        """
        codec, tenant = recorded_codec(stored.codec), current_tenant()
        cache = ArrivingCache(stored.policy, stored.tokens, codec, tenant)
        pages = await self._arbiter.admit(1, None, lambda: self.open(cache), tenant)
        try:
            transfer = self._source.fetch(handle, stored, pages, namespace, self._intake)
            report = await self._fill(cache, pages, transfer)
        except BaseException:
            pages.release()
            raise
        finally:
            self._arbiter.release_answers(tenant=tenant)
        return pages, report

    def _expected_pages(self, cache: ArrivingCache) -> PageCount:
        return self._expectation.pages(
            cache.policy, cache.tokens, cache.max_answer_tokens, cache.codec
        )

    async def _fill(
        self, cache: ArrivingCache, pages: SequencePages, transfer: Awaitable[TransferReport]
    ) -> TransferReport:
        report = await transfer
        used = pages.reservation.used
        self._expectation.saw_prompt(cache.policy, cache.tokens, used, cache.codec)
        pages.reservation.trim_to(_spare_pages(cache, pages))
        # the pages that were reserved in excess may be enough for the next in the queue
        self._arbiter.advance()
        return report


def _spare_pages(cache: ArrivingCache, pages: SequencePages) -> PageCount:
    """Pages that the answer may take at most, beside those in use."""
    if not cache.max_answer_tokens:
        return PageCount()
    bound, used = (
        pages.pages_bound(cache.tokens + cache.max_answer_tokens),
        pages.reservation.used,
    )
    return PageCount(bound.rows - used.rows, bound.metadata - used.metadata)

"""The three origins of a generation: a new prompt, a session, a stored cache."""

from __future__ import annotations

import functools

from headwise.tracing import annotate, span
from headwise.v1 import cache_pb2
from kvstore.pool import SequencePages
from kvstore.row_codecs import RowCodec
from services.decode.arriving_caches import ArrivingCache, ArrivingCaches
from services.decode.engine.sequence import Keep
from services.decode.generation import GenerationSpec, HeldTokens
from services.decode.memory.resident_caches import ResidentCaches
from services.decode.memory.sessions import Session, Sessions
from services.decode.observations import observe_cache
from services.decode.origin import Admit
from services.decode.report import TransferReport
from services.runtime.security.identity import current_tenant
from services.runtime.serving.convert import recorded_codec


class NewPrompt:
    """An empty cache: prefill sends the cache of the prompt."""

    def __init__(self, arrivals: ArrivingCaches, namespace: str) -> None:
        self._arrivals = arrivals
        self._namespace = namespace
        self.held = HeldTokens()

    def codec(self, spec: GenerationSpec) -> RowCodec:
        return spec.codec

    def expected_bytes(self, spec: GenerationSpec) -> int:
        # each answer may become a session, whose bytes count in full
        return spec.answers * self._arrivals.expected_bytes(_prompt_cache(spec))

    async def open(self, spec: GenerationSpec, admit: Admit) -> SequencePages:
        if len(spec.token_ids) == 1:
            # prefill, which checks the policy, is not asked for the cache of no tokens
            await self._arrivals.require_policy(spec.policy)
        return await admit(functools.partial(self._arrivals.open, _prompt_cache(spec)))

    async def fill(
        self, spec: GenerationSpec, pages: SequencePages, timeout_seconds: float | None
    ) -> TransferReport:
        prompt = spec.token_ids[:-1]
        if not prompt:
            return TransferReport()
        with span("pull", calls=True, prompt_tokens=len(prompt)):
            report = await self._arrivals.pull(
                _prompt_cache(spec), prompt, pages, self._namespace, timeout_seconds
            )
            annotate({"headwise.wire_bytes": report.wire_bytes})
        observe_cache(report, pages)
        return report

    def keep_first(self, spec: GenerationSpec, as_new_session: Keep | None) -> Keep | None:
        return as_new_session


class SessionTurn:
    """The cache of a session, which the caller has borrowed; the first answer replaces it."""

    def __init__(self, sessions: Sessions, session: Session, arrivals: ArrivingCaches) -> None:
        self._sessions = sessions
        self._arrivals = arrivals
        self._session = session
        self._turn = session.turn
        self.held = HeldTokens(session.tokens, session.report.context_tokens)

    def codec(self, spec: GenerationSpec) -> RowCodec:
        return self._session.pages.codec

    def expected_bytes(self, spec: GenerationSpec) -> int:
        """Return the bytes of prompt and answers.

        The first answer shares the pages of its session, which are counted. Each other one may
        become a session of its own.
        """
        turn = self._arrivals.expected_bytes(_prompt_cache(spec))
        return spec.answers * turn + (spec.answers - 1) * self._session.pages.resident_bytes

    async def open(self, spec: GenerationSpec, admit: Admit) -> SequencePages:
        return await admit(self._session.pages.fork)

    async def fill(
        self, spec: GenerationSpec, pages: SequencePages, timeout_seconds: float | None
    ) -> TransferReport:
        return self._session.report.without_transfer_cost()

    def keep_first(self, spec: GenerationSpec, as_new_session: Keep | None) -> Keep | None:
        seconds = spec.keep_session_seconds or self._session.keep_seconds
        return functools.partial(
            self._sessions.replace, self._session, self._turn, keep_seconds=seconds
        )


class StoredContext:
    """A stored cache, which is fetched if it is not resident; the prompt follows its tokens."""

    def __init__(
        self,
        resident_caches: ResidentCaches,
        arrivals: ArrivingCaches,
        handle: str,
        stored: cache_pb2.StoredCache,
        namespace: str,
    ) -> None:
        self._resident_caches = resident_caches
        self._arrivals = arrivals
        self._handle = handle
        self._stored = stored
        self._namespace = namespace
        self._report = TransferReport()
        self.held = HeldTokens(context_tokens=stored.tokens)

    def codec(self, spec: GenerationSpec) -> RowCodec:
        return recorded_codec(self._stored.codec)

    def expected_bytes(self, spec: GenerationSpec) -> int:
        """Return the bytes of prompt and answers; those of the stored cache are shared."""
        return spec.answers * self._arrivals.expected_bytes(_prompt_cache(spec))

    async def open(self, spec: GenerationSpec, admit: Admit) -> SequencePages:
        load = functools.partial(
            self._arrivals.load_stored, self._handle, self._stored, self._namespace
        )
        key = self._namespace, self._stored.key
        async with self._resident_caches.borrow(key, self._stored, load) as (context, fresh):
            report = context.report
            self._report = report if fresh else report.without_transfer_cost()
            return await admit(context.pages.fork)

    async def fill(
        self, spec: GenerationSpec, pages: SequencePages, timeout_seconds: float | None
    ) -> TransferReport:
        return self._report

    def keep_first(self, spec: GenerationSpec, as_new_session: Keep | None) -> Keep | None:
        return as_new_session


def _prompt_cache(spec: GenerationSpec) -> ArrivingCache:
    """The cache of a request's prompt without its last token, which the engine feeds."""
    return ArrivingCache(
        spec.policy, spec.prompt_tokens - 1, spec.codec, current_tenant(), spec.ends.max_tokens
    )

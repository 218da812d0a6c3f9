"""The answers to one prompt, computed by the engine and read by the call."""

from __future__ import annotations

import asyncio
import functools
import time

from headwise.results import Delta
from kvstore.pool import SequencePages
from services.decode.engine.answer import Answer
from services.decode.engine.engine import Engine
from services.decode.engine.loop_calls import LoopCalls
from services.decode.engine.sampling import Sampler
from services.decode.engine.sequence import Event, Finished, Keep, RunningSequence
from services.decode.generation import GenerationSpec
from services.decode.memory.arbiter import MemoryArbiter
from services.decode.memory.size_expectation import SizeExpectation
from services.runtime.model.tokenizer import PromptTokenizer
from services.runtime.security.identity import current_tenant


class RunningAnswers:
    """Answers in the engine, and their events; used on the event loop."""

    def __init__(
        self,
        sequences: tuple[RunningSequence, ...],
        events: asyncio.Queue[Event],
        expectation: SizeExpectation,
    ) -> None:
        self._sequences = sequences
        self._events = events
        self._expectation = expectation
        self._unfinished = len(sequences)

    @property
    def unfinished(self) -> int:
        """Answers whose `Finished` has not been read."""
        return self._unfinished

    async def next_event(self) -> Delta | Finished:
        """Return the next event of any answer. Raises the error that ended one."""
        event = await self._events.get()
        if isinstance(event, Exception):
            raise event
        if isinstance(event, Finished):
            self._unfinished -= 1
            self._expectation.saw_answer(event.tokens)
        return event

    def cancel(self) -> None:
        """Have the engine end all answers; harmless for those that have ended."""
        for sequence in self._sequences:
            sequence.cancel()


class AnswerRunner:
    """Has the engine compute the answers to prompts; used on the event loop."""

    def __init__(
        self,
        engine: Engine,
        loop_calls: LoopCalls,
        arbiter: MemoryArbiter[RunningSequence],
        expectation: SizeExpectation,
        tokenizer: PromptTokenizer,
    ) -> None:
        self._engine = engine
        self._doorbell = loop_calls
        self._arbiter = arbiter
        self._expectation = expectation
        self._tokenizer = tokenizer

    def start(
        self,
        spec: GenerationSpec,
        pages: SequencePages,
        keep_first: Keep | None,
        keep_others: Keep | None,
    ) -> RunningAnswers:
        """Submit the first answer, with the others as its forks.

        From here on the engine owns `pages`, and each answer leaves the admission by itself. The
        engine's thread calls `keep_first` and `keep_others` with the pages of finished answers. If
        this raises, the pages still belong to the caller.
        """
        events: asyncio.Queue[Event] = asyncio.Queue()
        sequence = functools.partial(self._sequence, spec, events)
        forks = tuple(sequence(index, None, keep_others, ()) for index in range(1, spec.answers))
        first = sequence(0, pages, keep_first, forks)
        self._engine.submit(first)
        return RunningAnswers((first, *forks), events, self._expectation)

    def _sequence(
        self,
        spec: GenerationSpec,
        events: asyncio.Queue[Event],
        index: int,
        pages: SequencePages | None,
        keep: Keep | None,
        forks: tuple[RunningSequence, ...],
    ) -> RunningSequence:
        def tell(event: Event) -> None:
            self._doorbell.call(functools.partial(events.put_nowait, event))

        # bound here: the engine's thread runs outside of any call
        tenant = current_tenant()
        leave = functools.partial(self._leave, time.monotonic(), tenant)
        return RunningSequence(
            pages=pages,
            suffix=spec.suffix,
            sampler=Sampler(spec.sampling.for_answer(index), spec.token_ids),
            answer=Answer(spec.ends, self._tokenizer.stream(spec.token_ids), index),
            tell=tell,
            on_release=functools.partial(self._doorbell.call, leave),
            keep=keep,
            forks=forks,
            owner=tenant,
        )

    def _leave(self, began: float, tenant: str) -> None:
        self._arbiter.release_answers(stayed_seconds=time.monotonic() - began, tenant=tenant)

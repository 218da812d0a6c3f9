"""The engine: one thread that steps all running sequences together."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch

from headwise.errors import HeadwiseError, Overloaded, Unavailable
from kvstore.pool import BatchStep, PageCount, PagePool
from services.decode.engine.sampling import Choice, Sampler, choose, chosen_token
from services.decode.engine.schedule import Feed, Scheduler
from services.decode.engine.sequence import RunningSequence
from services.decode.engine.step import BatchChanged, forward_step
from services.decode.memory.arbiter import MemoryArbiter
from services.runtime.model.served_model import ServedModel
from services.runtime.process import metrics
from services.runtime.serving.status import RETRY_AFTER_SECONDS

if TYPE_CHECKING:
    from services.decode.engine.cuda_graphs import CapturedSteps

log = logging.getLogger("headwise.engine")

_Given = TypeVar("_Given")
_Choice = Choice | HeadwiseError
# chooses a token for each sampler, which has that row of a step's results
_Choices = Callable[[Sequence[Sampler], list[int]], list[_Choice]]

# how long the only sequence left may wait for pages that arriving caches and busy sessions hold
_STARVED_SECONDS = 5.0
_STARVED_PAUSE_SECONDS = 0.01


class Engine:
    """Steps all running sequences in one thread, which sleeps while there are none.

    Sequences join and leave between steps. A step is schedule, run, postprocess. Sequences get
    pages in the order of arrival. With `captured`, steps of single tokens run as CUDA graphs if
    possible.
    """

    def __init__(
        self,
        served: ServedModel,
        pool: PagePool,
        scheduler: Scheduler,
        memory: MemoryArbiter[RunningSequence],
        captured: CapturedSteps | None = None,
    ) -> None:
        self._served = served
        self._scheduler = scheduler
        self._memory = memory
        self._captured = captured
        self._must_replan = False
        # sequences of a captured step that was begun and not read
        self._ahead: frozenset[RunningSequence] = frozenset()
        self._fed = pool.new_staged_rows(scheduler.staging_slots)
        self._joining: list[RunningSequence] = []
        self._running: list[RunningSequence] = []
        self._progressed = time.monotonic()
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether any sequence is being stepped. From any thread."""
        return bool(self._running)

    def submit(self, sequence: RunningSequence) -> None:
        """Add a sequence at the next step; from here on the engine owns the sequence's pages."""
        with self._wake:
            self._joining.append(sequence)
            self._wake.notify()

    def close(self) -> None:
        """Stop after the current step and release all pages."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _loop(self) -> None:
        with torch.inference_mode():
            while feeds := self._schedule():
                try:
                    if not self._run_captured(feeds):
                        self._postprocess(feeds, *self._run(feeds))
                except Exception as error:
                    log.exception("a step failed")
                    self._forget_ahead()
                    _fail(self._running, error)
        self._running += self._memory.preempted
        self._memory.preempted.clear()
        _fail(self._running, Unavailable("the service is shutting down", "DRAINING"))
        self._release_sequences(lambda sequence: sequence.cancelled)

    def _schedule(self) -> list[Feed]:
        """Add new sequences, release cancelled ones, and plan a step; empty when closed."""
        while True:
            self._release_sequences(lambda sequence: sequence.cancelled)
            with self._wake:
                self._running += self._joining
                self._joining = []
                if self._closed:
                    return []
                if not self._running and not self._memory.preempted:
                    self._wake.wait()
                    self._progressed = time.monotonic()
                    continue
            self._memory.restore(self._running, self._close_chunk)
            self._running.sort(key=lambda sequence: sequence.arrival)
            if any(sequence.cancelled for sequence in self._running):
                continue
            if feeds := self._scheduler.plan(self._running):
                metrics.BATCH_SEQUENCES.observe(len(feeds))
                return feeds
            self._watch_progress(progressed=False)

    def _run(self, feeds: Sequence[Feed]) -> tuple[BatchStep, torch.Tensor]:
        parts = [feed.part for feed in feeds]
        tokens = [token for feed in feeds for token in feed.tokens]
        with metrics.STEP_SECONDS.time():
            return forward_step(self._served, self._fed, parts, tokens)

    def _run_captured(self, feeds: Sequence[Feed]) -> bool:
        """Run the step as a CUDA graph; False if the step must run in the other way.

        If a sequence must wait for pages, the other way runs the rest of the batch.
        """
        if self._captured is None:
            return False
        if self._ahead:
            begun = [feed for feed in feeds if feed.sequence in self._ahead]
            if begun:
                # sequences that have come meanwhile wait for the step's end
                self._end_captured(begun, may_run_ahead=len(begun) == len(feeds))
                return True
            self._forget_ahead()
        if self._must_replan or not all(map(_is_single_token, feeds)):
            self._must_replan = False
            return False
        sequences = [feed.part.chunk.sequence for feed in feeds]
        tokens = [token for feed in feeds for token in feed.tokens]

        def reserve(place: int, need: PageCount) -> bool:
            return self._reserve(feeds[place].sequence, need)

        likeliest = all(feed.sequence.sampler.takes_likeliest for feed in feeds)
        try:
            if likeliest:
                if not self._captured.begin(sequences, tokens, reserve):
                    return False
                self._ahead = frozenset(feed.sequence for feed in feeds)
                self._end_captured(feeds, may_run_ahead=True)
                return True
            with metrics.STEP_SECONDS.time():
                logits = self._captured.run(sequences, tokens, reserve)
        except BatchChanged:
            self._must_replan = True
            return True
        if logits is None:
            return False
        self._advance(feeds, range(len(feeds)), _from(logits))
        self._watch_progress(progressed=True)
        return True

    def _end_captured(self, feeds: Sequence[Feed], *, may_run_ahead: bool) -> None:
        """Read a step that has begun, and tell its tokens while the device runs the next one.

        The next step is begun before if the batch will not change, for all that is known.
        """
        assert self._captured is not None, "a step was captured"
        runs_ahead = (
            may_run_ahead
            and len(feeds) == len(self._ahead)
            and not self._joining
            and all(feed.sequence.may_run_ahead for feed in feeds)
            and self._captured.begin_next([feed.part.chunk.sequence for feed in feeds])
        )
        if not runs_ahead:
            self._ahead = frozenset()
        with metrics.STEP_SECONDS.time():
            read = self._captured.read()
        found = [read[feed.part.chunk.sequence] for feed in feeds]

        def choices(samplers: Sequence[Sampler], rows: Sequence[int]) -> list[_Choice]:
            pairs = zip(samplers, rows, strict=True)
            return [chosen_token(s, found[row][0], is_finite=found[row][1]) for s, row in pairs]

        self._advance(feeds, range(len(feeds)), choices)
        self._watch_progress(progressed=True)

    def _forget_ahead(self) -> None:
        """Drop a step that was begun; no sequence of it is left."""
        if self._captured is not None:
            self._captured.forget()
        self._ahead = frozenset()

    def _postprocess(self, feeds: Sequence[Feed], step: BatchStep, logits: torch.Tensor) -> None:
        step.decide()
        ending = [place for place, feed in enumerate(feeds) if feed.part.ends]
        fitting = [
            place for place in ending if self._reserve(feeds[place].sequence, step.need(place))
        ]
        # only younger sequences are preempted, so the fitting sequences still have their pages
        step.commit(fitting)
        self._advance(feeds, fitting, _from(logits))
        self._watch_progress(progressed=bool(fitting) or len(ending) < len(feeds))

    def _advance(self, feeds: Sequence[Feed], places: Iterable[int], choices: _Choices) -> None:
        """Advance the sequences in `places`, whose chunks are in the cache.

        A sequence whose suffix is complete gets its next token from `choices`, by its place.
        """
        choosing: list[RunningSequence] = []
        rows: list[int] = []
        for place in places:
            sequence, chunk = feeds[place].sequence, feeds[place].part.chunk
            self._scheduler.close(chunk)
            sequence.chunk_is_retained(chunk.fed_tokens + feeds[place].part.tokens)
            if not sequence.pending:
                ready = [*self._begin_forks(sequence), sequence]
                choosing += ready
                rows += [place] * len(ready)
        if choosing:
            self._choose(choosing, choices([sequence.sampler for sequence in choosing], rows))
        self._release_sequences(lambda sequence: sequence.finished)

    def _reserve(self, sequence: RunningSequence, need: PageCount) -> bool:
        """Reserve pages for the sequence; False if the sequence must wait for them."""
        return self._memory.reserve_for_step(sequence, need, self._running, self._close_chunk)

    def _close_chunk(self, sequence: RunningSequence) -> None:
        """Free the staging range of a chunk that is not complete."""
        if sequence.chunk is not None:
            self._scheduler.close(sequence.chunk)

    def _begin_forks(self, parent: RunningSequence) -> list[RunningSequence]:
        forks, parent.forks = parent.forks, ()
        self._running += forks
        return [fork for fork in forks if _succeeds(fork, fork.begin, parent)]

    def _choose(self, sequences: Sequence[RunningSequence], choices: Sequence[_Choice]) -> None:
        """Give each sequence its next token."""
        for sequence, choice in zip(sequences, choices, strict=True):
            if _succeeds(sequence, sequence.accept, choice):
                metrics.GENERATED_TOKENS.inc()

    def _watch_progress(self, *, progressed: bool) -> None:
        """Fail the oldest sequence if no sequence has progressed for a while."""
        now = time.monotonic()
        if progressed:
            self._progressed = now
        elif now - self._progressed < _STARVED_SECONDS:
            time.sleep(_STARVED_PAUSE_SECONDS)
        else:
            self._progressed = now
            error = Overloaded(
                "the pool is full of caches that cannot be evicted",
                "POOL_EXHAUSTED",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
            _fail((self._running + self._memory.preempted)[:1], error)

    def _release_sequences(self, over: Callable[[RunningSequence], bool]) -> None:
        for waiting in (self._running, self._memory.preempted):
            # evaluated once: a handler may cancel at any moment, and each sequence that leaves the
            # list must be released
            leaving = [sequence for sequence in waiting if over(sequence)]
            waiting[:] = [sequence for sequence in waiting if sequence not in leaving]
            for sequence in leaving:
                self._close_chunk(sequence)
                for answer in (sequence, *sequence.forks):
                    answer.release()


def _from(logits: torch.Tensor) -> _Choices:
    """Return a function that chooses from these rows of `logits` `[B, V]`."""

    def choices(samplers: Sequence[Sampler], rows: list[int]) -> list[_Choice]:
        all_rows = rows == list(range(len(logits)))
        return choose(samplers, logits if all_rows else logits[rows])

    return choices


def _is_single_token(feed: Feed) -> bool:
    """Whether a sequence is fed a single token, and has no forks that wait for it."""
    part = feed.part
    return part.tokens == 1 and part.ends and not part.chunk.fed_tokens and not feed.sequence.forks


def _succeeds(sequence: RunningSequence, act: Callable[[_Given], None], given: _Given) -> bool:
    """Call `act` for one sequence; its failure ends that sequence and not the step."""
    try:
        act(given)
    except Exception as error:
        log.exception("a sequence failed after its step")
        _fail([sequence], error)
        return False
    return True


def _fail(sequences: Sequence[RunningSequence], error: Exception) -> None:
    for sequence in sequences:
        sequence.fail(error)
        sequence.cancel()

"""CUDA graphs of steps, and the choice of the steps that use them."""

from __future__ import annotations

import collections
import itertools
import logging
from collections.abc import Callable, Iterable, Sequence

import torch
from triton.errors import TritonError

from kvstore.errors import InvalidParameter, PoolExhausted
from kvstore.pool import PageCount, PagePool, SequencePages
from kvstore.pool.downloads import Download
from kvstore.pool.graph_batch import GraphBatch
from kvstore.row_codecs import ElementCodec, RowCodec
from services.decode.engine.cuda_graph import CapturedStep
from services.decode.engine.step import BatchChanged
from services.runtime.model.served_model import ServedModel
from services.runtime.process import metrics

log = logging.getLogger("headwise.captured")

# a step of few tokens reads all weights whatever their number, so a few sizes are enough
_FEW = 8


class CapturedSteps:
    """Graphs for at most `most` sequences: one of few places and one of all, for each codec.

    A graph is captured at its first use, and applies the rules to `chunk_tokens` tokens at once.
    As long as a sequence is stepped, its tables stay on the device. Used by the engine's thread
    alone.
    """

    def __init__(
        self,
        served: ServedModel,
        pool: PagePool,
        max_sequences: int,
        chunk_tokens: int = 1,
        *,
        fused: bool = False,
    ) -> None:
        self._served = served
        self._pool = pool
        self._chunk_tokens = chunk_tokens
        self._fused = fused
        self._sizes = sorted({min(_FEW, max_sequences), max_sequences})
        self._steps: dict[tuple[RowCodec, int], CapturedStep] = {}
        self._last: CapturedStep | None = None
        self._results: collections.deque[tuple[dict[SequencePages, int], Download]] = (
            collections.deque()
        )
        # what could not be captured is not tried again
        self._failed: set[tuple[RowCodec, int]] = set()

    def prepare(self, codecs: Iterable[ElementCodec]) -> None:
        """Capture the graphs of these codecs, so that no request waits for them.

        A cache whose keys and values have different codecs waits for its graph.
        """
        for codec, places in itertools.product(codecs, self._sizes):
            try:
                self._captured(RowCodec(codec, codec), places)
            except InvalidParameter:
                log.info("pages are too small for rows of the codec %s", codec)

    def run(
        self,
        sequences: Sequence[SequencePages],
        tokens: Sequence[int],
        reserve: Callable[[int, PageCount], bool],
    ) -> torch.Tensor | None:
        """Feed each sequence its token: the logits `[B, V]`, until the next call.

        None if these sequences cannot be stepped by a graph; nothing has changed then.
        `reserve(n, pages)` reserves pages for sequence n and returns False if it must wait. Raises
        `BatchChanged` in that case, or if sequences were preempted.
        """
        if not self.begin(sequences, tokens, reserve):
            return None
        step = self._last
        assert step is not None, "a step has begun"
        self._results.clear()
        step.resident.read_rows()
        return step.logits_of(step.resident.places_of(sequences))

    def begin(
        self,
        sequences: Sequence[SequencePages],
        tokens: Sequence[int],
        reserve: Callable[[int, PageCount], bool],
    ) -> bool:
        """Begin such a step without waiting for it; False where `run` returns None."""
        assert not self._results, "the steps before have been read"
        step = self._entered(sequences)
        if step is None:
            return False
        batch = step.resident
        needs = dict(zip(batch.sequences, batch.needs(), strict=True))
        for n, sequence in enumerate(sequences):
            # reserving may preempt sequences, which leave the batch then
            if sequence not in batch.sequences or not reserve(n, needs[sequence]):
                raise BatchChanged
        if len(batch.sequences) < len(sequences):
            raise BatchChanged
        places = batch.places_of(sequences)
        fed = [0] * batch.places
        for place, token in zip(places, tokens, strict=True):
            fed[place] = token
        step.run(fed)
        self._launched(step)
        return True

    def begin_next(self, sequences: Sequence[SequencePages]) -> bool:
        """Begin a further step of these sequences, each fed the likeliest token of the last.

        False if there are no pages for it, if chunks have several tokens, or if the batch has
        changed.
        """
        step = self._last
        assert step is not None, "a step has begun"
        if self._chunk_tokens > 1 or set(step.resident.sequences) != set(sequences):
            return False
        try:
            for sequence, need in zip(step.resident.sequences, step.resident.needs(), strict=True):
                sequence.reservation.ensure(need)
        except PoolExhausted:
            return False
        step.run()
        self._launched(step)
        return True

    def read(self) -> dict[SequencePages, tuple[int, bool]]:
        """Wait for the earliest step that has not been read.

        Return the likeliest token of every sequence, and whether its logit is finite. A step that
        was begun later goes on.
        """
        places, download = self._results.popleft()
        step = self._last
        assert step is not None, "a step has begun"
        tokens, finite = download.read().tolist()
        step.resident.read_rows(later_chunks=len(self._results))
        return {
            sequence: (tokens[place], bool(finite[place])) for sequence, place in places.items()
        }

    def forget(self) -> None:
        """Drop the results of steps that have not been read."""
        self._results.clear()

    def _launched(self, step: CapturedStep) -> None:
        batch = step.resident
        batch.count_step()
        places = dict(zip(batch.sequences, batch.places_of(batch.sequences), strict=True))
        self._results.append((places, Download.begin(step.choices)))

    def _entered(self, sequences: Sequence[SequencePages]) -> CapturedStep | None:
        """Return the step that these sequences are in from here on, and no others."""
        step, wanted = self._for(sequences), set(sequences)
        for batch in {one.resident for one in (self._last, step) if one is not None}:
            is_chosen = step is not None and batch is step.resident
            batch.leave([s for s in batch.sequences if not is_chosen or s not in wanted])
        self._last = step
        if step is not None:
            here = set(step.resident.sequences)
            step.resident.enter([s for s in sequences if s not in here])
        return step

    def _for(self, sequences: Sequence[SequencePages]) -> CapturedStep | None:
        """Return the step that can run these sequences, or None."""
        codec, count = sequences[0].codec, len(sequences)
        last = self._last
        if last is not None and count > self._sizes[0] // 2 and last.resident.fits(sequences):
            # all would move where the number of sequences goes up and down by one
            return last
        steps = (self._captured(codec, places) for places in self._sizes if places >= count)
        step = next((step for step in steps if step is not None), None)
        return step if step is not None and step.resident.fits(sequences) else None

    def _captured(self, codec: RowCodec, places: int) -> CapturedStep | None:
        """The step of that size, captured if it has not been at today's addresses; None if none
        can be.
        """
        step = self._steps.pop((codec, places), None)
        if (codec, places) in self._failed:
            return None
        if step is None or not step.resident.current:
            try:
                resident = GraphBatch(self._pool, codec, places, self._chunk_tokens)
                step = CapturedStep(self._served, resident, fused=self._fused)
            # Triton's errors are none of Python's
            except (RuntimeError, TritonError):
                log.exception(
                    "steps of %d sequences of the codec %s could not be captured; they go on one "
                    "launch at a time",
                    places,
                    codec.name,
                )
                metrics.CAPTURES_FAILED.labels(codec.name).inc()
                self._failed.add((codec, places))
                return None
        self._steps[codec, places] = step
        return step

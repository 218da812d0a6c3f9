"""The engine: one thread that steps all running sequences together."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

import torch

from headwise.errors import Unavailable
from services.decode.sequence import RunningSequence
from services.decode.step import run_step
from services.runtime import metrics
from services.runtime.model import ServedModel

log = logging.getLogger("headwise.engine")


class Engine:
    """Sequences join and leave between steps; the thread sleeps while there is none."""

    def __init__(self, served: ServedModel) -> None:
        self._served = served
        self._joining: list[RunningSequence] = []
        self._running: list[RunningSequence] = []
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    def submit(self, sequence: RunningSequence) -> None:
        """Let a sequence join at the next step; from here on the engine owns its pages."""
        with self._wake:
            self._joining.append(sequence)
            self._wake.notify()

    def close(self) -> None:
        """Stop after the current step and give all pages back."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _loop(self) -> None:
        with torch.inference_mode():
            while self._schedule():
                try:
                    self._postprocess(self._step())
                except Exception as error:
                    log.exception("a step failed")
                    _fail(self._running, error)
        _fail(self._running, Unavailable("the service is shutting down", "DRAINING"))
        self._let_go(lambda sequence: sequence.cancelled)

    def _schedule(self) -> bool:
        """Take in who joins, let go of who was cancelled; False when closed."""
        while True:
            self._let_go(lambda sequence: sequence.cancelled)
            with self._wake:
                self._running += self._joining
                self._joining = []
                if self._closed:
                    return False
                if not self._running:
                    self._wake.wait()
                    continue
            if not any(sequence.cancelled for sequence in self._running):
                metrics.BATCH_SEQUENCES.observe(len(self._running))
                return True

    def _step(self) -> torch.Tensor:
        pages = [sequence.pages for sequence in self._running]
        return run_step(self._served, pages, [sequence.next_token for sequence in self._running])

    def _postprocess(self, logits: torch.Tensor) -> None:
        for sequence, row in zip(self._running, logits, strict=True):
            try:
                sequence.accept(row)
            except Exception as error:
                # its own logits or sampling: the others' step has succeeded
                log.exception("choosing a token failed")
                _fail([sequence], error)
        metrics.GENERATED_TOKENS.inc(len(self._running))
        self._let_go(lambda sequence: sequence.finished)

    def _let_go(self, over: Callable[[RunningSequence], bool]) -> None:
        # asked once: a handler may cancel at any moment, and who leaves must also be released
        leaving = [sequence for sequence in self._running if over(sequence)]
        self._running = [sequence for sequence in self._running if sequence not in leaving]
        for sequence in leaving:
            sequence.release()


def _fail(sequences: Sequence[RunningSequence], error: Exception) -> None:
    for sequence in sequences:
        sequence.fail(error)
        sequence.cancel()

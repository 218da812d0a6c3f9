"""One generation inside the engine."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable

import torch

from headwise.results import Delta, FinishReason
from kvstore.pool import SequencePages
from services.decode.answer import Answer
from services.decode.report import Memory, measure
from services.decode.sampling import Sampler


@dataclasses.dataclass(frozen=True, slots=True)
class Finished:
    """How a sequence ended, measured just before its pages were given back."""

    reason: FinishReason
    memory: Memory


Event = Delta | Finished | Exception


class RunningSequence:
    """What the engine's thread and a request's handler share of one generation.

    The engine alone touches `pages`, and gives them back: after `cancel` at the latest one step
    later. Events reach the handler through `events`, in its own event loop.
    """

    def __init__(
        self,
        pages: SequencePages,
        next_token: int,
        sampler: Sampler,
        answer: Answer,
        on_release: Callable[[], None],
    ) -> None:
        self.pages = pages
        self.next_token = next_token
        self.cancelled = False
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self._sampler = sampler
        self._answer = answer
        self._on_release = on_release
        self._loop = asyncio.get_running_loop()

    @property
    def finished(self) -> bool:
        return self._answer.finish_reason is not None

    def cancel(self) -> None:
        """Nobody waits for this any more; harmless when it has ended."""
        self.cancelled = True

    def accept(self, logits: torch.Tensor) -> None:
        """Choose a token from `[V]` logits, tell the handler, and end if that was the last."""
        self.next_token = self._sampler.choose(logits)
        self._tell(self._answer.push(self.next_token))
        if self._answer.finish_reason is not None:
            self._tell(Finished(self._answer.finish_reason, measure(self.pages)))

    def fail(self, error: Exception) -> None:
        self._tell(error)

    def release(self) -> None:
        """Give the pages back; the sequence is over."""
        self.pages.release()
        self._loop.call_soon_threadsafe(self._on_release)

    def _tell(self, event: Event) -> None:
        self._loop.call_soon_threadsafe(self.events.put_nowait, event)

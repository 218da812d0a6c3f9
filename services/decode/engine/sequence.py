"""One answer inside the engine."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

from headwise.errors import HeadwiseError
from headwise.results import Delta, FinishReason
from kvstore.cache import RaggedLayer
from kvstore.pool import PageCount, PagePool, RetentionChunk, SequencePages
from kvstore.row_codecs import RowCodec
from services.decode.engine.answer import Answer
from services.decode.engine.sampling import Choice, Sampler
from services.decode.report import Memory, measure


@dataclasses.dataclass(frozen=True, slots=True)
class Finished:
    """How an answer ended, measured just before its pages were given back or kept."""

    index: int
    reason: FinishReason
    memory: Memory
    tokens: int
    session_id: str = ""


Event = Delta | Finished | Exception
# keeps pages and all tokens of a finished sequence, and names the session that now has them
Keep = Callable[[SequencePages, Sequence[int]], str]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class SwappedOut:
    """A preempted sequence's cache in host memory, and the pages it will need again."""

    layers: tuple[RaggedLayer, ...]
    length: int
    need: PageCount
    codec: RowCodec

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)


_arrivals = itertools.count()


class RunningSequence:
    """What the engine's thread and a request's handler share of one answer.

    The engine alone touches `pages`, and gives them back (or to `keep`): after `cancel` at the
    latest one step later. `suffix` are the tokens to feed, of which `done` are in the cache, and
    `sampler` is what chooses more. `forks` are further answers to the same prompt; they get their
    pages and their first logits from this one. `tell` and `on_release` are called by the engine's
    thread.
    """

    def __init__(
        self,
        *,
        pages: SequencePages | None,
        suffix: Sequence[int],
        sampler: Sampler,
        answer: Answer,
        tell: Callable[[Event], None],
        on_release: Callable[[], None],
        keep: Keep | None = None,
        forks: tuple[RunningSequence, ...] = (),
    ) -> None:
        self.pages = pages
        self.suffix = list(suffix)
        self.done = 0
        self.block: RetentionChunk | None = None
        self.swapped: SwappedOut | None = None
        self.cancelled = False
        self.arrival = next(_arrivals)
        self.forks = forks
        self.sampler = sampler
        self._answer = answer
        self._tell = tell
        self._on_release = on_release
        self._keep = keep

    @property
    def finished(self) -> bool:
        return self._answer.finish_reason is not None

    @property
    def pending(self) -> int:
        """Tokens that are to be fed before the next one is chosen."""
        return len(self.suffix) - self.done

    @property
    def swapped_bytes(self) -> int:
        """Bytes that the sequence occupies in host memory; 0 while it is in the pool."""
        # read by the metrics' thread too, while sequences return
        swapped = self.swapped
        return swapped.nbytes if swapped else 0

    def cancel(self) -> None:
        """Nobody waits for this any more; harmless when it has ended."""
        self.cancelled = True

    def block_is_retained(self, tokens: int) -> None:
        """So many tokens more are in the cache."""
        self.done += tokens
        self.block = None

    def accept(self, choice: Choice | HeadwiseError) -> None:
        """Take the next token, tell the handler, and end if that was the last.

        Raises the error if there is one instead.
        """
        if isinstance(choice, HeadwiseError):
            raise choice
        self.suffix, self.done = [choice.token_id], 0
        delta = self._answer.push(choice)
        reason = self._answer.finish_reason
        self._tell(delta)
        if reason is None:
            return
        assert self.pages is not None, "only who is in the pool is fed"
        memory = measure(self.pages)
        session_id = ""
        if self._keep is not None and not self.cancelled:
            session_id = self._keep(self.pages, self.sampler.token_ids)
            self.pages = None
        self._tell(Finished(self._answer.index, reason, memory, self._answer.tokens, session_id))

    def begin(self, parent: RunningSequence) -> None:
        """As a fork: take over the parent's state; raises `PoolExhausted` without room for it."""
        assert parent.pages is not None, "the parent has just been fed"
        self.pages = parent.pages.fork()

    def swap_out(self) -> None:
        """Leave the pool; a block that is not whole is fed again from its start."""
        assert self.pages is not None, "only who is in the pool leaves it"
        layers, used = self.pages.export(), self.pages.reservation.used
        self.swapped = SwappedOut(layers, self.pages.length, used, self.pages.codec)
        self.block = None
        self.pages.release()
        self.pages = None

    def swap_in(self, pool: PagePool, spare: PageCount) -> None:
        """Come back, with `spare` pages to grow into; raises `PoolExhausted`."""
        assert self.swapped is not None, "only who left comes back"
        swapped = self.swapped
        self.pages = pool.open(swapped.length, swapped.need + spare, swapped.codec)
        layers, self.swapped = self.swapped.layers, None
        for index, layer in enumerate(layers):
            self.pages.load(index, layer)

    def fail(self, error: Exception) -> None:
        self._tell(error)

    def release(self) -> None:
        """Give everything back; the sequence is over."""
        if self.pages is not None:
            self.pages.release()
        self.pages, self.swapped = None, None
        self._on_release()

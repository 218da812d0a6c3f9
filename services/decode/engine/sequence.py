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
    """The end of an answer, measured just before its pages are released or kept."""

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
    owner: str

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)


_arrivals = itertools.count()


class RunningSequence:
    """One answer in the engine, shared by the engine's thread and a request's handler.

    The engine alone uses `pages`, and releases them or passes them to `keep`: after `cancel`, at
    most one step later. `suffix` holds the tokens to feed, of which `done` are in the cache;
    `sampler` chooses further tokens. `forks` are other answers to the same prompt; they take their
    pages and their first logits from this one. The engine's thread calls `tell` and `on_release`.
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
        owner: str = "",
    ) -> None:
        self.owner = owner
        self.pages = pages
        self.suffix = list(suffix)
        self.done = 0
        self.chunk: RetentionChunk | None = None
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
    def may_run_ahead(self) -> bool:
        """Whether the next token may be fed before it is told: it is the likeliest, and not last.

        A sequence that is to be kept sees no token beyond its end.
        """
        return (
            self.sampler.takes_likeliest
            and self._keep is None
            and not self.cancelled
            and self._answer.tokens_left > 1
        )

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
        """End the answer; does nothing if it has ended."""
        self.cancelled = True

    def chunk_is_retained(self, tokens: int) -> None:
        """Count `tokens` more tokens in the cache."""
        self.done += tokens
        self.chunk = None

    def accept(self, choice: Choice | HeadwiseError) -> None:
        """Take the next token, report it, and end the answer if it was the last.

        Raises the error that took the token's place, if there is one.
        """
        if isinstance(choice, HeadwiseError):
            raise choice
        self.suffix, self.done = [choice.token_id], 0
        delta = self._answer.push(choice)
        reason = self._answer.finish_reason
        self._tell(delta)
        if reason is None:
            return
        assert self.pages is not None, "only sequences in the pool are fed"
        memory = measure(self.pages)
        session_id = ""
        if self._keep is not None and not self.cancelled:
            session_id = self._keep(self.pages, self.sampler.token_ids)
            self.pages = None
        self._tell(Finished(self._answer.index, reason, memory, self._answer.tokens, session_id))

    def begin(self, parent: RunningSequence) -> None:
        """Begin a fork with the parent's state; raises `PoolExhausted`."""
        assert parent.pages is not None, "the parent has just been fed"
        self.pages = parent.pages.fork()

    def swap_out(self) -> None:
        """Move the cache to host memory; an incomplete chunk is fed again from its beginning."""
        assert self.pages is not None, "only sequences in the pool are swapped out"
        layers, used = self.pages.export(), self.pages.reservation.used
        self.swapped = SwappedOut(layers, self.pages.length, used, self.pages.codec, self.owner)
        self.chunk = None
        self.pages.release()
        self.pages = None

    def swap_in(self, pool: PagePool, spare: PageCount) -> None:
        """Load the cache again, with `spare` pages to grow into; raises `PoolExhausted`."""
        assert self.swapped is not None, "only swapped sequences are swapped in"
        swapped = self.swapped
        self.pages = pool.open(swapped.length, swapped.need + spare, swapped.codec, swapped.owner)
        layers, self.swapped = self.swapped.layers, None
        for index, layer in enumerate(layers):
            self.pages.load(index, layer)

    def fail(self, error: Exception) -> None:
        self._tell(error)

    def release(self) -> None:
        """Release everything; the sequence has ended."""
        if self.pages is not None:
            self.pages.release()
        self.pages, self.swapped = None, None
        self._on_release()

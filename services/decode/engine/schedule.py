"""Who is fed what in the next step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from kvstore.pool import OpenBlock, Piece
from kvstore.retention import BLOCK_TOKENS
from services.decode.engine.sequence import RunningSequence


@dataclasses.dataclass(frozen=True, slots=True)
class Feed:
    """A piece of a sequence's suffix."""

    sequence: RunningSequence
    piece: Piece
    tokens: tuple[int, ...]


class Scheduler:
    """Every sequence that decodes is fed its token; suffixes are fed beside them, oldest first.

    A suffix comes under the rules in blocks of `BLOCK_TOKENS`, but is fed in pieces, so that a step
    has at most `step_tokens` suffix tokens while others wait for their next token. A block that is
    not whole occupies one of a few spans of cells.
    """

    def __init__(self, *, most_sequences: int, spans: int, step_tokens: int) -> None:
        self._singles = most_sequences
        self._step_tokens = step_tokens
        self._free = [most_sequences + n * BLOCK_TOKENS for n in range(spans)]
        # what the fed rows need
        self.cells = most_sequences + spans * BLOCK_TOKENS

    def plan(self, running: Sequence[RunningSequence]) -> list[Feed]:
        """The next step's feeds, in the order of the sequences."""
        feeds: list[Feed] = []
        decoding = any(sequence.pending == 1 for sequence in running)
        budget = self._step_tokens if decoding else BLOCK_TOKENS
        singles = 0
        for sequence in running:
            if sequence.pending == 1 and sequence.block is None:
                feeds.append(_single(sequence, singles))
                singles += 1
            elif budget and self._open(sequence):
                feeds.append(_piece(sequence, budget))
                budget -= feeds[-1].piece.tokens
        return feeds

    def close(self, block: OpenBlock) -> None:
        """The block's span is free again."""
        if block.cell >= self._singles:
            self._free.append(block.cell)

    def _open(self, sequence: RunningSequence) -> bool:
        """Have a span for the sequence's block, if there is one left."""
        if sequence.block is None:
            if not self._free or sequence.pages is None:
                return False
            sequence.block = OpenBlock(sequence.pages, self._free.pop())
        return True


def _single(sequence: RunningSequence, cell: int) -> Feed:
    assert sequence.pages is not None, "only who is in the pool is fed"
    return Feed(sequence, Piece(OpenBlock(sequence.pages, cell), 1), (sequence.suffix[-1],))


def _piece(sequence: RunningSequence, budget: int) -> Feed:
    block = sequence.block
    assert block is not None, "opened by the caller"
    size = min(BLOCK_TOKENS, sequence.pending)
    count = min(size - block.fed, budget)
    first = sequence.done + block.fed
    tokens = tuple(sequence.suffix[first : first + count])
    return Feed(sequence, Piece(block, count, ends=block.fed + count == size), tokens)

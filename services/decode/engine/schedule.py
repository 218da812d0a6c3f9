"""The tokens that each sequence is fed in the next step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from kvstore.pool import ChunkPart, RetentionChunk
from kvstore.retention import RETENTION_CHUNK_TOKENS
from services.decode.engine.sequence import RunningSequence


@dataclasses.dataclass(frozen=True, slots=True)
class Feed:
    """A piece of a sequence's suffix."""

    sequence: RunningSequence
    part: ChunkPart
    tokens: tuple[int, ...]


class Scheduler:
    """Every sequence that decodes is fed its token; suffixes are fed beside them, oldest first.

    The rules are applied to a suffix in chunks of `RETENTION_CHUNK_TOKENS`. A chunk is fed in
    parts, so that a step has at most `step_tokens` suffix tokens while other sequences wait for
    their next token. A chunk that is not complete occupies one of a few staging ranges.
    """

    def __init__(self, *, max_sequences: int, ranges: int, step_tokens: int) -> None:
        self._singles = max_sequences
        self._step_tokens = step_tokens
        self._free = [max_sequences + n * RETENTION_CHUNK_TOKENS for n in range(ranges)]
        # what the fed rows need
        self.staging_slots = max_sequences + ranges * RETENTION_CHUNK_TOKENS

    def plan(self, running: Sequence[RunningSequence]) -> list[Feed]:
        """The next step's feeds, in the order of the sequences."""
        feeds: list[Feed] = []
        decoding = any(sequence.pending == 1 for sequence in running)
        budget = self._step_tokens if decoding else RETENTION_CHUNK_TOKENS
        singles = 0
        for sequence in running:
            if sequence.pending == 1 and sequence.chunk is None:
                feeds.append(_single(sequence, singles))
                singles += 1
            elif budget and self._open(sequence):
                feeds.append(_part(sequence, budget))
                budget -= feeds[-1].part.tokens
        return feeds

    def close(self, chunk: RetentionChunk) -> None:
        """Free the chunk's staging range."""
        if chunk.first_slot >= self._singles:
            self._free.append(chunk.first_slot)

    def _open(self, sequence: RunningSequence) -> bool:
        """Open a chunk in a free staging range; False if there is none."""
        if sequence.chunk is None:
            if not self._free or sequence.pages is None:
                return False
            sequence.chunk = RetentionChunk(sequence.pages, self._free.pop())
        return True


def _single(sequence: RunningSequence, slot: int) -> Feed:
    assert sequence.pages is not None, "only who is in the pool is fed"
    return Feed(
        sequence, ChunkPart(RetentionChunk(sequence.pages, slot), 1), (sequence.suffix[-1],)
    )


def _part(sequence: RunningSequence, budget: int) -> Feed:
    chunk = sequence.chunk
    assert chunk is not None, "opened by the caller"
    size = min(RETENTION_CHUNK_TOKENS, sequence.pending)
    count = min(size - chunk.fed_tokens, budget)
    first = sequence.done + chunk.fed_tokens
    tokens = tuple(sequence.suffix[first : first + count])
    return Feed(sequence, ChunkPart(chunk, count, ends=chunk.fed_tokens + count == size), tokens)

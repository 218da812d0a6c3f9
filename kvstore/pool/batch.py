"""One step of a batch of sequences in the pool: attention layer by layer, then one retention."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from kvstore.attention_input import AttentionInput
from kvstore.kernels.paged_batch import PagedBatch
from kvstore.kernels.ragged_attention import ragged_attention
from kvstore.kernels.retain import apply_decision, decide
from kvstore.kernels.staged_rows import StagedRows
from kvstore.kernels.step_scratch import StepScratch
from kvstore.pool.reservation import PageCount
from kvstore.pool.sequence import SequencePages
from kvstore.row_codecs.rotation import rotate


@dataclasses.dataclass(slots=True, eq=False)
class RetentionChunk:
    """Tokens of one sequence that the rules treat together; fed at once or in parts.

    The chunk's rows lie in the staging slots from `first_slot` on until the chunk is complete and
    retained. `fed_tokens` counts the tokens of earlier parts, `row_attention` is the attention
    that each row received from them.
    """

    sequence: SequencePages
    first_slot: int
    fed_tokens: int = 0
    row_attention: torch.Tensor | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class ChunkPart:
    """Tokens of a chunk that one step feeds; `ends` says that they complete the chunk."""

    chunk: RetentionChunk
    tokens: int
    ends: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class _Change:
    """The change that retention will make to one sequence."""

    rows: NDArray[np.int32]
    copies: tuple[tuple[int, int, int], ...]
    need: PageCount


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Sequences of one layout that all feed a single token, or all a longer part.

    `places` in the batch, the numbers of the staged `tokens`, and their `staging_slots`.
    """

    places: NDArray[np.int64]
    tokens: torch.Tensor
    staging_slots: torch.Tensor
    batch: PagedBatch
    scratch: StepScratch

    def attend(self, inputs: AttentionInput) -> torch.Tensor:
        """Return `[N, HQ, D]`, the attention of this part's N tokens.

        Where the codec rotates, queries, keys and values are rotated first, and the output of
        rotated values is rotated back.
        """
        q, k, v = inputs.q.transpose(0, 1), inputs.k, inputs.v
        layout = self.batch.row_pages.layout
        if layout.keys.rotated:
            q, k = rotate(q), rotate(k)
        if layout.values.rotated:
            v = rotate(v)
        self.batch.staged.put(inputs.layer, self.staging_slots, k, v)
        out = ragged_attention(
            q,
            self.batch,
            inputs.layer,
            self.scratch,
            scale=inputs.scale,
            sliding_window=inputs.sliding_window,
        )
        return rotate(out) if layout.values.rotated else out


class BatchStep:
    """Feeds each of B sequences of one pool a part of a chunk, at its own position.

    Sequences may differ in codec. No cache changes before the forward pass has succeeded: `attend`
    every layer, `decide`, then `commit` the sequences that have the pages. A chunk that is not
    committed can be fed again.
    """

    def __init__(
        self, staged: StagedRows, parts: Sequence[ChunkPart], classes: NDArray[np.uint8]
    ) -> None:
        """`classes` `[N]`: the token classes of all fed tokens, one part after another."""
        chunks = [part.chunk for part in parts]
        pool = chunks[0].sequence.pool
        assert all(chunk.sequence.pool is pool for chunk in chunks), "one pool for the batch"
        self._parts = tuple(parts)
        self._batch = PagedBatch(
            pool.storage.unquantized,
            pool.storage.columns,
            pool.tables,
            staged,
            slots=np.array([chunk.sequence.slot for chunk in chunks], np.int64),
            staging_slots=np.array([chunk.first_slot for chunk in chunks], np.int64),
            before=np.array([chunk.fed_tokens for chunk in chunks], np.int64),
            counts=np.array([part.tokens for part in parts], np.int64),
        )
        staging_slots = self._batch.token_staging_slots()
        staged.flags[staging_slots] = classes
        self._scratch = StepScratch.of(self._batch)
        self._groups = tuple(self._by_kind())
        self._restore_row_attention()
        self._changes: dict[int, _Change] = {}

    @classmethod
    def whole(
        cls, sequences: Sequence[SequencePages], classes: NDArray[np.uint8], staged: StagedRows
    ) -> BatchStep:
        """Build a step with a complete chunk of m tokens per sequence; `classes` `[B, m]`."""
        tokens = classes.shape[1]
        parts = [
            ChunkPart(RetentionChunk(sequence, n * tokens), tokens)
            for n, sequence in enumerate(sequences)
        ]
        return cls(staged, parts, classes.reshape(-1))

    def attend(self, inputs: AttentionInput) -> torch.Tensor:
        """Return `[N, HQ, D]`, the attention of all N fed tokens, which have no axis B."""
        if len(self._groups) == 1:
            return self._groups[0].attend(inputs)
        out = torch.empty_like(inputs.q.transpose(0, 1))
        for group in self._groups:
            out[group.tokens] = group.attend(inputs.of_tokens(group.tokens))
        return out

    def decide(self) -> None:
        """Find the changes of every complete chunk, after the last layer; nothing changes yet."""
        ending = np.array([n for n, part in enumerate(self._parts) if part.ends], np.int64)
        if len(ending):
            scratch, batch = self._scratch.of_sequences(ending), self._batch.of(ending)
            rows_after = decide(batch, scratch)
            for n, place in enumerate(ending.tolist()):
                self._changes[place] = self._change(place, rows_after[n])
        for place, part in enumerate(self._parts):
            if not part.ends:
                part.chunk.row_attention = self._scratch.row_attention_of(place).clone()
                part.chunk.fed_tokens += part.tokens

    def need(self, place: int) -> PageCount:
        """Return the unused pages that committing the sequence takes."""
        change = self._changes.get(place)
        return change.need if change else PageCount()

    def commit(self, places: Sequence[int]) -> None:
        """Apply every head's rule to these sequences, whose chunks are complete, in one call.

        Raises `PoolExhausted` before any change if a reservation is too small.
        """
        if not places:
            return
        changes = [(self._parts[place].chunk, self._changes[place]) for place in places]
        for chunk, change in changes:
            chunk.sequence.reservation.require(change.need)
        for chunk, change in changes:
            for page in change.copies:
                chunk.sequence.tables.make_private(*page)
            chunk.sequence.tables.extend(change.rows)
        for group in self._groups:
            chosen = np.intersect1d(group.places, places)
            if len(chosen):
                batch = dataclasses.replace(self._batch.of(chosen), row_pages=group.batch.row_pages)
                rows_after = np.stack([self._changes[place].rows for place in chosen.tolist()])
                apply_decision(batch, self._scratch.of_sequences(chosen), rows_after)
        for place, (chunk, change) in zip(places, changes, strict=True):
            chunk.sequence.tables.trim(change.rows)
            chunk.sequence.length += int(self._batch.chunk_tokens[place])

    def retain(self) -> None:
        """`decide` and `commit` all; raises `PoolExhausted` before any change."""
        self.decide()
        self.commit(sorted(self._changes))

    def _by_kind(self) -> Iterator[_Group]:
        """Yield the sequences by layout, single tokens apart from longer parts.

        The queries of a longer part form a matrix, for which kernels have other forms.
        """
        tokens = np.repeat(np.arange(len(self._parts)), self._batch.counts)
        singles = (self._batch.chunk_tokens == 1).tolist()
        stores = [part.chunk.sequence.row_pages for part in self._parts]
        kinds = list(zip(stores, singles, strict=True))
        for kind in dict.fromkeys(kinds):
            row_pages, places = kind[0], np.array([n for n, k in enumerate(kinds) if k == kind])
            batch = dataclasses.replace(self._batch.of(places), row_pages=row_pages)
            device = batch.staged.keys.device
            yield _Group(
                places,
                torch.from_numpy(np.flatnonzero(np.isin(tokens, places))).to(device),
                torch.from_numpy(batch.token_staging_slots()).to(device),
                batch,
                self._scratch.of_sequences(places),
            )

    def _restore_row_attention(self) -> None:
        """Add the attention that rows received from earlier parts of the chunks."""
        rows = self._batch.rows
        for place, part in enumerate(self._parts):
            before, chunk = part.chunk.row_attention, part.chunk
            if before is None:
                continue
            at = 0
            for layer, head in np.argwhere(self._scratch.starts[place] >= 0).tolist():
                start, size = self._scratch.starts[place, layer, head], rows[place, layer, head]
                size += chunk.fed_tokens
                self._scratch.row_attention[start : start + size] = before[at : at + size]
                at += size

    def _change(self, place: int, rows_after: NDArray[np.int32]) -> _Change:
        sequence = self._parts[place].chunk.sequence
        copies: tuple[tuple[int, int, int], ...] = ()
        if sequence.may_share:
            sequence.may_share = sequence.tables.shared_pages()
            copies = tuple(self._shared_writes(place, rows_after)) if sequence.may_share else ()
        need = sequence.tables.need(rows_after) + PageCount(len(copies))
        return _Change(rows_after, copies, need)

    def _shared_writes(
        self, place: int, rows_after: NDArray[np.int32]
    ) -> list[tuple[int, int, int]]:
        """Return shared pages that will be written: layer, head and number in the table."""
        sequence = self._parts[place].chunk.sequence
        tables, page_rows = sequence.tables, sequence.row_pages.page_rows
        found = []
        for layer, count in enumerate(tables.kv_heads.tolist()):
            for head in range(count):
                written = self._written(place, layer, head, int(rows_after[layer, head]))
                have = -(-int(tables.rows[layer, head]) // page_rows)
                for number in written:
                    page = int(tables.pages[layer, head, number])
                    if number < have and tables.is_shared(page):
                        found.append((layer, head, number))
        return found

    def _written(self, place: int, layer: int, head: int, after: int) -> list[int]:
        """Return the numbers of the pages in which a head's slots change."""
        held = int(self._batch.rows[place, layer, head])
        if self._scratch.starts[place, layer, head] < 0:
            slots = np.arange(held, after)
        else:
            stays = self._scratch.stays_of((place, layer, head))
            holes, arriving = np.flatnonzero(~stays[:held]), int(stays[held:].sum())
            refilled = holes[:arriving]
            from_tail = holes[arriving:][holes[arriving:] < after]
            slots = np.concatenate((refilled, from_tail, np.arange(held, after)))
        page_rows = self._parts[place].chunk.sequence.row_pages.page_rows
        numbers: list[int] = np.unique(slots // page_rows).tolist()
        return numbers

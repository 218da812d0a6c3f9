"""One step of a batch of sequences in the pool: attention layer by layer, then one retention."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from kvstore.attention_input import AttentionInput
from kvstore.kernels.paged_batch import PagedBatch, StagedRows, StepScratch
from kvstore.kernels.ragged_attention import ragged_attention
from kvstore.kernels.retain import apply_decision, decide
from kvstore.pool.reservation import PageCount
from kvstore.pool.sequence import SequencePages
from kvstore.row_codecs.rotation import rotate


@dataclasses.dataclass(slots=True, eq=False)
class RetentionChunk:
    """Tokens of one sequence that the rules treat together; fed at once or in parts.

    The chunk's rows lie in the staging slots from `cell` on until the chunk is complete and
    retained. `fed` counts the tokens of earlier parts, `received` is the attention that each row
    received from them.
    """

    sequence: SequencePages
    cell: int
    fed: int = 0
    received: torch.Tensor | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class ChunkPart:
    """Tokens of a chunk that one step feeds; `ends` says that they complete the chunk."""

    block: RetentionChunk
    tokens: int
    ends: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class _Change:
    """The change that retention will make to one sequence."""

    rows: NDArray[np.int32]
    copies: tuple[tuple[int, int, int], ...]
    need: PageCount


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Sequences of one layout that all feed a single token, or all a longer part.

    `places` in the batch, the numbers of the fed `tokens`, and their staging slots, `cells`.
    """

    places: NDArray[np.int64]
    tokens: torch.Tensor
    cells: torch.Tensor
    batch: PagedBatch
    scratch: StepScratch

    def attend(self, inputs: AttentionInput) -> torch.Tensor:
        """Return `[N, HQ, D]`, the attention of this part's N tokens.

        Where the codec rotates, queries, keys and values are rotated first, and the output of
        rotated values is rotated back.
        """
        q, k, v = inputs.q.transpose(0, 1), inputs.k, inputs.v
        coding = self.batch.store.coding
        if coding.keys.rotated:
            q, k = rotate(q), rotate(k)
        if coding.values.rotated:
            v = rotate(v)
        self.batch.fed.put(inputs.layer, self.cells, k, v)
        out = ragged_attention(
            q,
            self.batch,
            inputs.layer,
            self.scratch,
            scale=inputs.scale,
            sliding_window=inputs.sliding_window,
        )
        return rotate(out) if coding.values.rotated else out


class BatchStep:
    """Feeds each of B sequences of one pool a part of a chunk, at its own position.

    Sequences may differ in codec. No cache changes before the forward pass has succeeded: `attend`
    every layer, `decide`, then `commit` the sequences that have the pages. A chunk that is not
    committed can be fed again.
    """

    def __init__(
        self, fed: StagedRows, pieces: Sequence[ChunkPart], classes: NDArray[np.uint8]
    ) -> None:
        """`classes` `[N]`: the token classes of all fed tokens, one part after another."""
        blocks = [piece.block for piece in pieces]
        pool = blocks[0].sequence.pool
        assert all(block.sequence.pool is pool for block in blocks), "one pool for the batch"
        self._pieces = tuple(pieces)
        self._batch = PagedBatch(
            pool.storage.plain,
            pool.storage.columns,
            pool.tables,
            fed,
            slots=np.array([block.sequence.slot for block in blocks], np.int64),
            cells=np.array([block.cell for block in blocks], np.int64),
            before=np.array([block.fed for block in blocks], np.int64),
            counts=np.array([piece.tokens for piece in pieces], np.int64),
        )
        cells = self._batch.token_staging_slots()
        fed.flags[cells] = classes
        self._scratch = StepScratch.of(self._batch)
        self._parts = tuple(self._of_one_kind())
        self._remember_received()
        self._changes: dict[int, _Change] = {}

    @classmethod
    def whole(
        cls, sequences: Sequence[SequencePages], classes: NDArray[np.uint8], fed: StagedRows
    ) -> BatchStep:
        """Build a step with a complete chunk of m tokens per sequence; `classes` `[B, m]`."""
        tokens = classes.shape[1]
        pieces = [
            ChunkPart(RetentionChunk(sequence, n * tokens), tokens)
            for n, sequence in enumerate(sequences)
        ]
        return cls(fed, pieces, classes.reshape(-1))

    def attend(self, inputs: AttentionInput) -> torch.Tensor:
        """Return `[N, HQ, D]`, the attention of all N fed tokens, which have no axis B."""
        if len(self._parts) == 1:
            return self._parts[0].attend(inputs)
        out = torch.empty_like(inputs.q.transpose(0, 1))
        for part in self._parts:
            out[part.tokens] = part.attend(inputs.of_tokens(part.tokens))
        return out

    def decide(self) -> None:
        """Find the changes of every complete chunk, after the last layer; nothing changes yet."""
        ending = np.array([n for n, piece in enumerate(self._pieces) if piece.ends], np.int64)
        if len(ending):
            scratch, batch = self._scratch.of_sequences(ending), self._batch.of(ending)
            rows_after = decide(batch, scratch)
            for n, place in enumerate(ending.tolist()):
                self._changes[place] = self._change(place, rows_after[n])
        for place, piece in enumerate(self._pieces):
            if not piece.ends:
                piece.block.received = self._scratch.received_of(place).clone()
                piece.block.fed += piece.tokens

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
        changes = [(self._pieces[place].block, self._changes[place]) for place in places]
        for block, change in changes:
            block.sequence.reservation.require(change.need)
        for block, change in changes:
            for page in change.copies:
                block.sequence.tables.make_private(*page)
            block.sequence.tables.extend(change.rows)
        for part in self._parts:
            chosen = np.intersect1d(part.places, places)
            if len(chosen):
                batch = dataclasses.replace(self._batch.of(chosen), store=part.batch.store)
                rows_after = np.stack([self._changes[place].rows for place in chosen.tolist()])
                apply_decision(batch, self._scratch.of_sequences(chosen), rows_after)
        for place, (block, change) in zip(places, changes, strict=True):
            block.sequence.tables.settle(change.rows)
            block.sequence.length += int(self._batch.blocks[place])

    def retain(self) -> None:
        """`decide` and `commit` all; raises `PoolExhausted` before any change."""
        self.decide()
        self.commit(sorted(self._changes))

    def _of_one_kind(self) -> Iterator[_Part]:
        """Yield the sequences by layout, single tokens apart from longer parts.

        The queries of a longer part form a matrix, for which kernels have other forms.
        """
        tokens = np.repeat(np.arange(len(self._pieces)), self._batch.counts)
        singles = (self._batch.blocks == 1).tolist()
        stores = [piece.block.sequence.store for piece in self._pieces]
        kinds = list(zip(stores, singles, strict=True))
        for kind in dict.fromkeys(kinds):
            store, places = kind[0], np.array([n for n, k in enumerate(kinds) if k == kind])
            batch = dataclasses.replace(self._batch.of(places), store=store)
            device = batch.fed.keys.device
            yield _Part(
                places,
                torch.from_numpy(np.flatnonzero(np.isin(tokens, places))).to(device),
                torch.from_numpy(batch.token_staging_slots()).to(device),
                batch,
                self._scratch.of_sequences(places),
            )

    def _remember_received(self) -> None:
        """Add the attention that rows received from earlier parts of the chunks."""
        rows = self._batch.rows
        for place, piece in enumerate(self._pieces):
            before, block = piece.block.received, piece.block
            if before is None:
                continue
            at = 0
            for layer, head in np.argwhere(self._scratch.starts[place] >= 0).tolist():
                start, size = self._scratch.starts[place, layer, head], rows[place, layer, head]
                size += block.fed
                self._scratch.received[start : start + size] = before[at : at + size]
                at += size

    def _change(self, place: int, rows_after: NDArray[np.int32]) -> _Change:
        sequence = self._pieces[place].block.sequence
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
        sequence = self._pieces[place].block.sequence
        tables, page_rows = sequence.tables, sequence.store.page_rows
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
        page_rows = self._pieces[place].block.sequence.store.page_rows
        numbers: list[int] = np.unique(slots // page_rows).tolist()
        return numbers

"""A batch whose tables rest on the device, so that steps of it need no host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from kvstore.attention_input import AttentionInput
from kvstore.kernels.device_batch import DeviceBatch, DeviceScratch
from kvstore.kernels.ragged_attention.kernel import attend_on_device
from kvstore.kernels.ragged_attention.row_ends import row_ends
from kvstore.kernels.retain.free_pages import FreePages
from kvstore.kernels.retain.kernel import retain
from kvstore.pool.page_reservation import PageReservation
from kvstore.pool.pages import PagePool
from kvstore.pool.reservation import PageCount
from kvstore.pool.sequence import SequencePages
from kvstore.row_codecs import RowCodec
from kvstore.row_codecs.rotation import rotate
from kvstore.rule_table import may_evict, needs_scores, rule_to_record, rule_words
from kvstore.rules import RetentionRule

_Entry = TypeVar("_Entry", bound=np.generic)
# keeps nothing: the rule of places that no sequence has
_NOBODY = RetentionRule()


class ResidentBatch:
    """Up to `places` sequences of one codec that are fed a token each, step after step.

    A step is `begin`, `attend` for every layer, and `retain` or, inside a block, `go_on`: launches
    and tensor operations at addresses that never change, without a word to the host, so that it can
    be captured as a CUDA graph. Around it the host lends pages (`lend`) before, and looks at the
    rows (`settle`) when it reads the tokens anyway. Between `enter` and `leave` the pool's own
    tables of the sequences are out of date, and so are its figures; whoever asks one of the
    sequences for its tables makes all leave. Places beyond the sequences' hold nothing and never
    will. The tensors may be made and written in inference mode.

    Rules look at `block_tokens` tokens together, because what may leave is found by a look at every
    row; rows stay up to so many tokens longer. Leaving in the middle of a block ends it.
    """

    def __init__(self, pool: PagePool, codec: RowCodec, places: int, block_tokens: int = 1) -> None:
        self.places = places
        self._block_tokens = block_tokens
        # of the open block
        self._fed = 0
        self._pool = pool
        self._store = pool.storage.store(codec)
        self._columns = pool.storage.columns
        self._sequences: tuple[SequencePages, ...] = ()
        _, layers, heads = pool.tables.rows.shape
        self._rows = np.zeros((places, layers, heads), np.int32)
        self._marked = np.zeros((places, layers, heads), np.bool_)
        self._exists = np.arange(heads) < pool.tables.kv_heads[:, None]
        self.batch, self.scratch = self._allocated()
        device = self.batch.rows.device
        nothing = torch.empty(0, dtype=torch.int32, device=device)
        self._free_rows = FreePages.of(pool.pages, nothing)
        self._free_marks = FreePages.of(pool.metadata_pages, nothing)
        # of the tokens that are fed now
        self.cells = self.batch.cells.long()
        self._bounded = torch.zeros(self.batch.rows.shape, dtype=torch.bool, device=device)
        self._active = torch.zeros(places, dtype=torch.int64, device=device)
        self.enter(())

    @property
    def sequences(self) -> tuple[SequencePages, ...]:
        """Who is here; nobody once anybody has been asked for its tables."""
        return self._sequences

    @property
    def ends_block(self) -> bool:
        """Whether the rules look at what the next step feeds."""
        return self._fed + 1 == self._block_tokens

    @property
    def current(self) -> bool:
        """Whether the pool's marks are still those that were found at first."""
        return self._columns is self._pool.storage.columns

    def fits(self, sequences: Sequence[SequencePages]) -> bool:
        """Whether these can be stepped here: few enough, of this codec, their pages their own."""
        return (
            len(sequences) <= self.places
            and self.current
            and all(sequence.store is self._store for sequence in sequences)
            and not any(s.may_share and s.tables.shared_pages() for s in sequences)
        )

    @torch.inference_mode()
    def enter(self, sequences: Sequence[SequencePages]) -> None:
        """Take over the sequences' tables; those of before have left."""
        assert not sequences or self.fits(sequences), "the caller has asked"
        assert not self._sequences, "who was here has left"
        self._sequences = tuple(sequences)
        tables, batch = self._pool.tables, self.batch
        slots = np.array([sequence.slot for sequence in sequences], np.int64)
        rules = np.full((self.places, *tables.rules.shape[1:]), rule_to_record(_NOBODY))
        rules[: len(slots)] = tables.rules[slots]
        self._rows = self._with_nobody(tables.rows, slots)
        self._marked = self._with_nobody(tables.marked, slots)
        for target, values in (
            (batch.pages, self._with_nobody(tables.pages, slots)),
            (batch.marks, self._with_nobody(tables.marks, slots)),
            (batch.rows, self._rows),
            (batch.marked, self._marked),
            (batch.weighted, self._with_nobody(tables.weighted, slots)),
            (batch.lengths, self._with_nobody(tables.lengths, slots)),
            (batch.rules, rule_words(rules)),
            (self.scratch.scored, needs_scores(rules) & self._exists),
            (self._bounded, may_evict(rules) & self._exists),
            (self._active, (np.arange(self.places) < len(slots)).astype(np.int64)),
        ):
            target.copy_(torch.from_numpy(values))
        for sequence in sequences:
            sequence.stepped_on_device(self.leave)

    @torch.inference_mode()
    def lend(self) -> None:
        """Have pages at hand for whatever the next step may need.

        Raises `PoolExhausted` before any change if a reservation is too small.
        """
        needs = self.needs()
        for sequence, need in zip(self._sequences, needs, strict=True):
            sequence.reservation.require(need)
        rows: list[int] = []
        marks: list[int] = []
        for sequence, need in zip(self._sequences, needs, strict=True):
            rows += sequence.reservation.rows.take(need.rows)
            marks += sequence.reservation.marks.take(need.marks)
        _add(self._free_rows, rows)
        _add(self._free_marks, marks)

    def needs(self) -> list[PageCount]:
        """Pages that each sequence lacks, should its heads keep their block and a token more."""
        rows, marks = (counts.sum((1, 2)).tolist() for counts in self._counts(self._fed + 1))
        used = [sequence.reservation.used for sequence in self._sequences]
        return [
            PageCount(max(0, row_pages - have.rows), max(0, metadata_pages - have.marks))
            for row_pages, metadata_pages, have in zip(rows, marks, used, strict=False)
        ]

    def begin(self) -> None:
        """Before a step's first layer: where each head's rows end, and where its entries begin."""
        batch = self.batch
        torch.add(batch.cells, batch.before, out=self.cells)
        row_ends(batch.rows, batch.ends)
        # the same throughout a block
        sizes = torch.where(self._bounded, batch.rows + self._block_tokens, 0).view(-1)
        ends = sizes.cumsum(0)
        self.scratch.starts.copy_((ends - sizes).view_as(self.scratch.starts))

    def attend(self, inputs: AttentionInput) -> torch.Tensor:
        """Return `[N, HQ, D]`, as `BatchStep.attend` does, for one token per place."""
        queries, k, v = inputs.q.transpose(0, 1), inputs.k, inputs.v
        coding, batch = self._store.coding, self.batch
        if coding.keys.rotated:
            queries, k = rotate(queries), rotate(k)
        if coding.values.rotated:
            v = rotate(v)
        heads = k.shape[0]
        batch.new_keys[inputs.layer, :heads].index_copy_(1, self.cells, k)
        batch.new_values[inputs.layer, :heads].index_copy_(1, self.cells, v)
        out = attend_on_device(
            queries,
            batch,
            inputs.layer,
            self.scratch,
            kv_heads=heads,
            scale=inputs.scale,
            sliding_window=inputs.sliding_window,
        )
        return rotate(out) if coding.values.rotated else out

    def retain(self) -> None:
        """After the last layer of a step that ends a block: every head's rule, in one launch."""
        batch = self.batch
        retain(batch, self.scratch, self._free_rows, self._free_marks)
        batch.lengths.add_(self._active * (batch.before + batch.counts))
        batch.before.zero_()

    def go_on(self) -> None:
        """After the last layer of any other step."""
        self.batch.before.add_(1)

    def settle(self) -> None:
        """After a step, of which there was one: see what rows there are, once a block has ended.

        Waits for the device then.
        """
        self._fed = (self._fed + 1) % self._block_tokens
        if not self._fed:
            self._look()

    def _look(self) -> None:
        exhausted = int(self._free_rows.exhausted) or int(self._free_marks.exhausted)
        assert not exhausted, "what was lent suffices"
        self._rows = self.batch.rows.cpu().numpy()

    @torch.inference_mode()
    def leave(self) -> None:
        """Give the tables back to the pool, and to every reservation as many pages as it has."""
        for sequence in self._sequences:
            sequence.stepped_on_device(None)
        if self._fed:
            # nothing is fed beside what has been
            self.batch.before.sub_(1)
            self.retain()
            self._fed = 0
        self._look()
        tables, batch = self._pool.tables, self.batch
        pages, marks, lengths = (
            part.cpu().numpy() for part in (batch.pages, batch.marks, batch.lengths)
        )
        row_counts, mark_counts = self._counts(0)
        spare_rows, spare_marks = _drained(self._free_rows), _drained(self._free_marks)
        for place, sequence in enumerate(self._sequences):
            tables.pages[sequence.slot] = pages[place]
            tables.marks[sequence.slot] = marks[place]
            tables.rows[sequence.slot] = self._rows[place]
            tables.lengths[sequence.slot] = lengths[place]
            reservation = sequence.reservation
            _exchange(reservation.rows, _first(pages[place], row_counts[place]), spare_rows)
            _exchange(reservation.marks, _first(marks[place], mark_counts[place]), spare_marks)
        assert not spare_rows, "every page is somebody's"
        assert not spare_marks, "every page is somebody's"
        self._sequences = ()
        self.enter(())

    def _counts(self, more: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Row pages and mark pages of every head with `more` rows more, `[places, L, H]`."""
        rows = np.where(self._exists, self._rows + more, 0)
        marked = np.where(self._marked, rows, 0)
        return -(-rows // self._store.page_rows), -(-marked // self._columns.page_rows)

    def _with_nobody(self, table: NDArray[_Entry], slots: NDArray[np.int64]) -> NDArray[_Entry]:
        values = np.zeros((self.places, *table.shape[1:]), table.dtype)
        values[: len(slots)] = table[slots]
        return values

    def _allocated(self) -> tuple[DeviceBatch, DeviceScratch]:
        pool, store, columns, places = self._pool, self._store, self._columns, self.places
        tables, device = pool.tables, store.arena.device
        _, layers, heads, table_pages = tables.pages.shape
        cells = places * self._block_tokens
        fed = pool.new_staged_rows(cells)
        # a scored row has marks, and a head's new rows have an entry each, too
        entries = pool.metadata_pages * pool.page_rows + cells * layers * heads
        line = min(places * heads * table_pages, pool.pages) * store.page_rows

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        batch = DeviceBatch(
            store=store,
            positions=columns.positions,
            scores=columns.scores,
            metadata_flags=columns.flags,
            log_weights=columns.log_weights,
            metadata_page_rows=columns.page_rows,
            kv_heads=torch.from_numpy(tables.kv_heads).to(device),
            pages=zeros(places, layers, heads, table_pages),
            marks=zeros(places, layers, heads, table_pages),
            rows=zeros(places, layers, heads),
            marked=zeros(places, layers, heads, dtype=torch.bool),
            weighted=zeros(places, layers, heads, dtype=torch.bool),
            rules=zeros(
                places, layers, heads, rule_words(rule_to_record(_NOBODY)).size, dtype=torch.int64
            ),
            lengths=zeros(places, dtype=torch.int64),
            ends=zeros(layers, places * heads),
            new_keys=fed.keys,
            new_values=fed.values,
            flags=zeros(cells, dtype=torch.uint8),
            cells=torch.arange(places, dtype=torch.int32, device=device) * self._block_tokens,
            before=zeros(places),
            counts=zeros(places) + 1,
            first_queries=torch.arange(places, dtype=torch.int32, device=device),
            most=1,
            single=True,
            row_bound=line,
            weighted_layers=(len(columns.log_weights) > 0,) * layers,
        )
        scratch = DeviceScratch(
            zeros(places, layers, heads, dtype=torch.int64),
            zeros(places, layers, heads, dtype=torch.bool),
            torch.zeros(entries, device=device),
            zeros(entries, dtype=torch.uint8),
            (True,) * layers,
        )
        return batch, scratch


def _add(free: FreePages, pages: list[int]) -> None:
    """Put pages at the end of the queue."""
    if pages:
        more = torch.tensor(pages, dtype=torch.int32, device=free.ring.device)
        at = torch.arange(len(pages), device=more.device) + free.returned
        free.ring[at % free.ring.numel()] = more
        free.returned.add_(len(pages))


def _drained(free: FreePages) -> list[int]:
    """Take all pages out of the queue."""
    first, end, ring = int(free.taken), int(free.returned), free.ring.cpu().numpy()
    free.taken.copy_(free.returned)
    pages: list[int] = ring[np.arange(first, end) % len(ring)].tolist()
    return pages


def _first(table: NDArray[np.int32], counts: NDArray[np.int32]) -> list[int]:
    """The first so many pages of every head of a table `[L, H, P]`."""
    pages: list[int] = table[np.arange(table.shape[-1]) < counts[..., None]].tolist()
    return pages


def _exchange(claim: PageReservation, held: list[int], spare: list[int]) -> None:
    """Have a claim use the pages that are `held`, and get back as many as it lent beyond them."""
    beyond = claim.used - len(held)
    back, spare[:beyond] = spare[:beyond], []
    claim.exchange([*held, *back])
    claim.give_back(back)

"""A batch whose tables stay on the device, for steps that run as CUDA graphs."""

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
# the rule of places without a sequence: it keeps no rows
_EMPTY_RULE = RetentionRule()


class GraphBatch:
    """A batch of up to `places` sequences of one codec, fed one token each per step.

    A step is `begin`, `attend` for every layer, and then `retain`, or `advance_within_chunk` inside
    a retention chunk. It consists of launches and tensor operations at constant addresses and does
    not wait for the host, so that it can be captured as a CUDA graph. Before a step the host calls
    `preallocate_pages`; after it, when it reads the tokens anyway, `sync_rows`.

    Between `enter` and `leave` the pool's tables of the sequences, and the pool's figures, are out
    of date; `SequencePages.sync` makes the batch leave. Places without a sequence hold no rows. The
    tensors may be made and written in inference mode.

    The rules are applied to `chunk_tokens` tokens together, because they read every row; rows stay
    up to that many tokens longer. Leaving inside a chunk ends the chunk.
    """

    def __init__(self, pool: PagePool, codec: RowCodec, places: int, chunk_tokens: int = 1) -> None:
        self.places = places
        self._chunk_tokens = chunk_tokens
        # tokens of the incomplete chunk
        self._fed = 0
        self._pool = pool
        self._row_pages = pool.storage.row_pages(codec)
        self._columns = pool.storage.columns
        self._sequences: tuple[SequencePages, ...] = ()
        _, layers, heads = pool.tables.rows.shape
        self._rows = np.zeros((places, layers, heads), np.int32)
        self._has_metadata = np.zeros((places, layers, heads), np.bool_)
        self._exists = np.arange(heads) < pool.tables.kv_heads[:, None]
        self.batch, self.scratch = self._allocated()
        device = self.batch.rows.device
        nothing = torch.empty(0, dtype=torch.int32, device=device)
        self._free_rows = FreePages.of(pool.pages, nothing)
        self._free_metadata = FreePages.of(pool.metadata_pages, nothing)
        # staging slots of the tokens that are fed now
        self.staging_slots = self.batch.staging_slots.long()
        self._bounded = torch.zeros(self.batch.rows.shape, dtype=torch.bool, device=device)
        self._active = torch.zeros(places, dtype=torch.int64, device=device)
        self.enter(())

    @property
    def sequences(self) -> tuple[SequencePages, ...]:
        """The sequences of the batch; empty once they have left."""
        return self._sequences

    @property
    def ends_chunk(self) -> bool:
        """Whether the next step completes a retention chunk."""
        return self._fed + 1 == self._chunk_tokens

    @property
    def current(self) -> bool:
        """Whether the pool's metadata is still in the memory that the graph uses."""
        return self._columns is self._pool.storage.columns

    def fits(self, sequences: Sequence[SequencePages]) -> bool:
        """Whether the batch can step these: few enough, of its codec, without shared pages."""
        return (
            len(sequences) <= self.places
            and self.current
            and all(sequence.row_pages is self._row_pages for sequence in sequences)
            and not any(s.may_share and s.tables.shared_pages() for s in sequences)
        )

    @torch.inference_mode()
    def enter(self, sequences: Sequence[SequencePages]) -> None:
        """Copy the sequences' tables to the device; the previous sequences must have left."""
        assert not sequences or self.fits(sequences), "the caller has checked that they fit"
        assert not self._sequences, "the previous sequences have left"
        self._sequences = tuple(sequences)
        tables, batch = self._pool.tables, self.batch
        slots = np.array([sequence.slot for sequence in sequences], np.int64)
        rules = np.full((self.places, *tables.rules.shape[1:]), rule_to_record(_EMPTY_RULE))
        rules[: len(slots)] = tables.rules[slots]
        self._rows = self._padded(tables.rows, slots)
        self._has_metadata = self._padded(tables.has_metadata, slots)
        for target, values in (
            (batch.pages, self._padded(tables.pages, slots)),
            (batch.metadata, self._padded(tables.metadata, slots)),
            (batch.rows, self._rows),
            (batch.has_metadata, self._has_metadata),
            (batch.weighted, self._padded(tables.weighted, slots)),
            (batch.lengths, self._padded(tables.lengths, slots)),
            (batch.rules, rule_words(rules)),
            (self.scratch.scored, needs_scores(rules) & self._exists),
            (self._bounded, may_evict(rules) & self._exists),
            (self._active, (np.arange(self.places) < len(slots)).astype(np.int64)),
        ):
            target.copy_(torch.from_numpy(values))
        for sequence in sequences:
            sequence.stepped_on_device(self.leave)

    @torch.inference_mode()
    def preallocate_pages(self) -> None:
        """Give the device the pages that the next step may need.

        Raises `PoolExhausted` before any change if a reservation is too small.
        """
        needs = self.needs()
        for sequence, need in zip(self._sequences, needs, strict=True):
            sequence.reservation.require(need)
        rows: list[int] = []
        metadata: list[int] = []
        for sequence, need in zip(self._sequences, needs, strict=True):
            rows += sequence.reservation.rows.take(need.rows)
            metadata += sequence.reservation.metadata.take(need.metadata)
        _add(self._free_rows, rows)
        _add(self._free_metadata, metadata)

    def needs(self) -> list[PageCount]:
        """Return the pages that each sequence lacks if its heads keep the chunk and one token."""
        rows, metadata = (counts.sum((1, 2)).tolist() for counts in self._counts(self._fed + 1))
        used = [sequence.reservation.used for sequence in self._sequences]
        return [
            PageCount(max(0, row_pages - have.rows), max(0, metadata_pages - have.metadata))
            for row_pages, metadata_pages, have in zip(rows, metadata, used, strict=False)
        ]

    def begin(self) -> None:
        """Begin a step: compute the ends of the heads' rows and the beginnings of their entries."""
        batch = self.batch
        torch.add(batch.staging_slots, batch.before, out=self.staging_slots)
        row_ends(batch.rows, batch.ends)
        # the same throughout a chunk
        sizes = torch.where(self._bounded, batch.rows + self._chunk_tokens, 0).view(-1)
        ends = sizes.cumsum(0)
        self.scratch.starts.copy_((ends - sizes).view_as(self.scratch.starts))

    def attend(self, inputs: AttentionInput) -> torch.Tensor:
        """Return `[N, HQ, D]`, as `BatchStep.attend` does, for one token per place."""
        queries, k, v = inputs.q.transpose(0, 1), inputs.k, inputs.v
        layout, batch = self._row_pages.layout, self.batch
        if layout.keys.rotated:
            queries, k = rotate(queries), rotate(k)
        if layout.values.rotated:
            v = rotate(v)
        heads = k.shape[0]
        batch.new_keys[inputs.layer, :heads].index_copy_(1, self.staging_slots, k)
        batch.new_values[inputs.layer, :heads].index_copy_(1, self.staging_slots, v)
        out = attend_on_device(
            queries,
            batch,
            inputs.layer,
            self.scratch,
            kv_heads=heads,
            scale=inputs.scale,
            sliding_window=inputs.sliding_window,
        )
        return rotate(out) if layout.values.rotated else out

    def retain(self) -> None:
        """Apply every head's rule in one launch, after the last layer of a chunk's last step."""
        batch = self.batch
        retain(batch, self.scratch, self._free_rows, self._free_metadata)
        batch.lengths.add_(self._active * (batch.before + batch.counts))
        batch.before.zero_()

    def advance_within_chunk(self) -> None:
        """Count a token, after the last layer of any other step."""
        self.batch.before.add_(1)

    def sync_rows(self) -> None:
        """Count a step; at the end of a chunk, wait for the device and read the rows held."""
        self._fed = (self._fed + 1) % self._chunk_tokens
        if not self._fed:
            self._read_rows()

    def _read_rows(self) -> None:
        exhausted = int(self._free_rows.exhausted) or int(self._free_metadata.exhausted)
        assert not exhausted, "preallocated pages suffice"
        self._rows = self.batch.rows.cpu().numpy()

    @torch.inference_mode()
    def leave(self) -> None:
        """Copy the tables back to the pool, and give every reservation as many pages as it uses."""
        for sequence in self._sequences:
            sequence.stepped_on_device(None)
        if self._fed:
            # the chunk ends with the tokens already fed
            self.batch.before.sub_(1)
            self.retain()
            self._fed = 0
        self._read_rows()
        tables, batch = self._pool.tables, self.batch
        pages, metadata, lengths = (
            part.cpu().numpy() for part in (batch.pages, batch.metadata, batch.lengths)
        )
        row_counts, metadata_counts = self._counts(0)
        spare_rows, spare_metadata = _drained(self._free_rows), _drained(self._free_metadata)
        for place, sequence in enumerate(self._sequences):
            tables.pages[sequence.slot] = pages[place]
            tables.metadata[sequence.slot] = metadata[place]
            tables.rows[sequence.slot] = self._rows[place]
            tables.lengths[sequence.slot] = lengths[place]
            reservation = sequence.reservation
            _exchange(reservation.rows, _first(pages[place], row_counts[place]), spare_rows)
            _exchange(
                reservation.metadata,
                _first(metadata[place], metadata_counts[place]),
                spare_metadata,
            )
        assert not spare_rows, "every page belongs to a sequence"
        assert not spare_metadata, "every page belongs to a sequence"
        self._sequences = ()
        self.enter(())

    def _counts(self, more: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return row and metadata pages of heads with `more` additional rows, `[places, L, H]`."""
        rows = np.where(self._exists, self._rows + more, 0)
        has_metadata = np.where(self._has_metadata, rows, 0)
        return -(-rows // self._row_pages.page_rows), -(-has_metadata // self._columns.page_rows)

    def _padded(self, table: NDArray[_Entry], slots: NDArray[np.int64]) -> NDArray[_Entry]:
        values = np.zeros((self.places, *table.shape[1:]), table.dtype)
        values[: len(slots)] = table[slots]
        return values

    def _allocated(self) -> tuple[DeviceBatch, DeviceScratch]:
        pool, row_pages, columns, places = self._pool, self._row_pages, self._columns, self.places
        tables, device = pool.tables, row_pages.arena.device
        _, layers, heads, table_pages = tables.pages.shape
        staging_slots = places * self._chunk_tokens
        staged = pool.new_staged_rows(staging_slots)
        # every scored row has metadata, and every new row of a head has an entry
        entries = pool.metadata_pages * pool.page_rows + staging_slots * layers * heads
        line = min(places * heads * table_pages, pool.pages) * row_pages.page_rows

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        batch = DeviceBatch(
            row_pages=row_pages,
            positions=columns.positions,
            scores=columns.scores,
            metadata_flags=columns.flags,
            log_weights=columns.log_weights,
            metadata_page_rows=columns.page_rows,
            kv_heads=torch.from_numpy(tables.kv_heads).to(device),
            pages=zeros(places, layers, heads, table_pages),
            metadata=zeros(places, layers, heads, table_pages),
            rows=zeros(places, layers, heads),
            has_metadata=zeros(places, layers, heads, dtype=torch.bool),
            weighted=zeros(places, layers, heads, dtype=torch.bool),
            rules=zeros(
                places,
                layers,
                heads,
                rule_words(rule_to_record(_EMPTY_RULE)).size,
                dtype=torch.int64,
            ),
            lengths=zeros(places, dtype=torch.int64),
            ends=zeros(layers, places * heads),
            new_keys=staged.keys,
            new_values=staged.values,
            flags=zeros(staging_slots, dtype=torch.uint8),
            staging_slots=torch.arange(places, dtype=torch.int32, device=device)
            * self._chunk_tokens,
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
    """Append pages to the queue."""
    if pages:
        more = torch.tensor(pages, dtype=torch.int32, device=free.ring.device)
        at = torch.arange(len(pages), device=more.device) + free.returned
        free.ring[at % free.ring.numel()] = more
        free.returned.add_(len(pages))


def _drained(free: FreePages) -> list[int]:
    """Remove all pages from the queue and return them."""
    first, end, ring = int(free.taken), int(free.returned), free.ring.cpu().numpy()
    free.taken.copy_(free.returned)
    pages: list[int] = ring[np.arange(first, end) % len(ring)].tolist()
    return pages


def _first(table: NDArray[np.int32], counts: NDArray[np.int32]) -> list[int]:
    """Return the first `counts` pages of every head of a table `[L, H, P]`."""
    pages: list[int] = table[np.arange(table.shape[-1]) < counts[..., None]].tolist()
    return pages


def _exchange(reservation: PageReservation, held: list[int], spare: list[int]) -> None:
    """Let a reservation use the `held` pages, and return to it as many as it gave beyond them."""
    beyond = reservation.used - len(held)
    back, spare[:beyond] = spare[:beyond], []
    reservation.exchange([*held, *back])
    reservation.give_back(back)

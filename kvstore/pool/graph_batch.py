"""A batch whose tables stay on the device, for steps that run as CUDA graphs."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from kvstore.attention_input import AttentionInput
from kvstore.kernels.ragged_attention.kernel import attend_on_device
from kvstore.kernels.ragged_attention.row_ends import row_ends
from kvstore.kernels.retain.free_pages import FreePages, append_pages
from kvstore.kernels.retain.kernel import retain
from kvstore.pool.downloads import Download
from kvstore.pool.graph_tables import empty_batch
from kvstore.pool.pages import PagePool
from kvstore.pool.reservation import PageCount
from kvstore.pool.sequence import SequencePages
from kvstore.pool.uploads import Uploads
from kvstore.row_codecs import RowCodec
from kvstore.row_codecs.rotation import rotate
from kvstore.rule_table import may_evict, needs_scores, rule_words


class GraphBatch:
    """A batch of up to `places` sequences of one codec, fed one token each per step.

    A step is `begin`, `attend` for every layer, and then `retain`, or `advance_within_chunk` inside
    a retention chunk. It consists of launches and tensor operations at constant addresses and does
    not wait for the host, so that it can be captured as a CUDA graph. Before a step the host calls
    `preallocate_pages`; after it, when it reads the tokens anyway, `sync_rows`.

    Sequences enter and leave one by one, and keep their places in between. Meanwhile the pool's
    tables of these sequences, and the pool's figures, are out of date; `SequencePages.sync` makes
    the sequence leave. Places without a sequence hold no rows. The tensors may be made and written
    in inference mode.

    The rules are applied to `chunk_tokens` tokens together, because they read every row; rows stay
    up to that many tokens longer. A sequence that enters or leaves inside a chunk ends it for all.
    """

    def __init__(self, pool: PagePool, codec: RowCodec, places: int, chunk_tokens: int = 1) -> None:
        self.places = places
        self._chunk_tokens = chunk_tokens
        # tokens of the incomplete chunk
        self._fed = 0
        # of complete chunks after which the rows held have not been read
        self._unread_tokens = 0
        self._downloads: collections.deque[Download] = collections.deque()
        self._pool = pool
        self._row_pages = pool.storage.row_pages(codec)
        self._columns = pool.storage.columns
        self._at: list[SequencePages | None] = [None] * places
        _, layers, heads = pool.tables.rows.shape
        self._rows = np.zeros((places, layers, heads), np.int32)
        self._has_metadata = np.zeros((places, layers, heads), np.bool_)
        self._scores = np.zeros(places, np.bool_)
        self._exists = np.arange(heads) < pool.tables.kv_heads[:, None]
        self.batch, self.scratch = empty_batch(pool, self._row_pages, places, chunk_tokens)
        self._scoreless = dataclasses.replace(self.scratch, scored_layers=(False,) * layers)
        self._attends_with = self.scratch
        device = self.batch.rows.device
        self._uploads = Uploads(device)
        nothing = torch.empty(0, dtype=torch.int32, device=device)
        self._free_rows = FreePages.of(pool.pages, nothing)
        self._free_metadata = FreePages.of(pool.metadata_pages, nothing)
        # pages of all sequences here, whoever brought them
        self._lent_rows: set[int] = set()
        self._lent_metadata: set[int] = set()
        # staging slots of the tokens that are fed now
        self.staging_slots = self.batch.staging_slots.long()
        # the rule of empty places drops every row
        self._exists_there = torch.from_numpy(self._exists).to(device)
        self._bounded = self._exists_there.repeat(places, 1, 1)
        self._active = torch.zeros(places, dtype=torch.int64, device=device)
        self._empty_rules = self.batch.rules[0].clone()

    @property
    def sequences(self) -> tuple[SequencePages, ...]:
        """The sequences of the batch, in the order of their places."""
        return tuple(sequence for sequence in self._at if sequence is not None)

    @property
    def ends_chunk(self) -> bool:
        """Whether the next step completes a retention chunk."""
        return self._fed + 1 == self._chunk_tokens

    @property
    def scores(self) -> bool:
        """Whether the rules of any sequence here need scores."""
        return bool(self._scores.any())

    @property
    def current(self) -> bool:
        """Whether the pool's metadata is still in the memory that the graph uses."""
        return self._columns is self._pool.storage.columns

    def fits(self, sequences: Sequence[SequencePages]) -> bool:
        """Whether the batch can step these: few enough, of its codec, without shared pages."""
        here = set(self.sequences)
        return (
            len(sequences) <= self.places
            and self.current
            and all(sequence.row_pages is self._row_pages for sequence in sequences)
            and not any(s.may_share and s.tables.shared_pages() for s in sequences if s not in here)
        )

    def places_of(self, sequences: Sequence[SequencePages]) -> list[int]:
        """Return the places of sequences of the batch."""
        places = {sequence: place for place, sequence in self._occupied()}
        return [places[sequence] for sequence in sequences]

    @torch.inference_mode()
    def enter(self, sequences: Sequence[SequencePages]) -> None:
        """Copy the sequences' tables to free places on the device.

        Between two chunks the host does not wait.
        """
        assert self.fits([*self.sequences, *sequences]), "the caller has checked that they fit"
        if sequences:
            self._end_chunk()
        free = (place for place, sequence in enumerate(self._at) if sequence is None)
        for sequence, place in zip(sequences, list(free), strict=False):
            self._copy_in(sequence, place)
            sequence.reservation.rows.lend(self._lent_rows)
            sequence.reservation.metadata.lend(self._lent_metadata)
            sequence.stepped_on_device(functools.partial(self.leave, [sequence]))
            self._at[place] = sequence

    @torch.inference_mode()
    def preallocate_pages(self) -> None:
        """Give the device the pages that the rest of a chunk may need, before its first step.

        Raises `PoolExhausted` before any change if a reservation is too small.
        """
        sequences, needs = self.sequences, self.needs()
        for sequence, need in zip(sequences, needs, strict=True):
            sequence.reservation.require(need)
        rows: list[int] = []
        metadata: list[int] = []
        for sequence, need in zip(sequences, needs, strict=True):
            if need != PageCount():
                reservation = sequence.reservation
                rows += reservation.rows.lend_more(need.rows, self._lent_rows)
                metadata += reservation.metadata.lend_more(need.metadata, self._lent_metadata)
        if rows or metadata:
            pages = self._uploads.copy(np.array(rows + metadata, np.int32)).view(torch.int32)
            append_pages(self._free_rows, self._free_metadata, pages, len(rows), len(metadata))

    def needs(self) -> list[PageCount]:
        """Return the pages that each sequence lacks if its heads keep all tokens of the chunk.

        None are lacking once the chunk has begun.
        """
        sequences = list(self._occupied())
        if self._fed:
            return [PageCount()] * len(sequences)
        counts = self._counts(self._unread_tokens + self._chunk_tokens)
        rows, metadata = (pages.sum((1, 2)).tolist() for pages in counts)
        needs = []
        for place, sequence in sequences:
            used = sequence.reservation.used
            needs.append(
                PageCount(max(0, rows[place] - used.rows), max(0, metadata[place] - used.metadata))
            )
        return needs

    def begin(self, *, scored: bool = True) -> None:
        """Begin a step: compute the ends of the heads' rows and the beginnings of their entries.

        `scored`: rows receive attention, which is needed where `scores`.
        """
        batch = self.batch
        self._attends_with = self.scratch if scored else self._scoreless
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
            self._attends_with,
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

    def count_step(self) -> None:
        """Count a step; at the end of a chunk the rows held begin their way to the host."""
        self._fed = (self._fed + 1) % self._chunk_tokens
        if not self._fed:
            self._unread_tokens += self._chunk_tokens
            self._begin_reading()

    def sync_rows(self) -> None:
        """Count a step; at the end of a chunk, wait for the device and read the rows held."""
        self.count_step()
        self.read_rows()

    def read_rows(self, later_chunks: int = 0) -> None:
        """Read the rows held at the end of all chunks but the last `later_chunks`."""
        while len(self._downloads) > later_chunks:
            self._read_rows(self._downloads.popleft().read())
            self._unread_tokens = len(self._downloads) * self._chunk_tokens

    @torch.inference_mode()
    def leave(self, sequences: Sequence[SequencePages] | None = None) -> None:
        """Copy tables back to the pool, by default all; reservations get as many pages as they use.

        The other sequences stay where they are.
        """
        leaving = [
            (place, sequence)
            for place, sequence in self._occupied()
            if sequences is None or sequence in sequences
        ]
        if not leaving:
            return
        self._end_chunk()
        for _, sequence in leaving:
            sequence.stepped_on_device(None)
        self._copy_out(leaving)
        for place, _ in leaving:
            self._clear(place)

    def _end_chunk(self) -> None:
        """End an incomplete chunk with the tokens already fed."""
        if self._fed:
            self.batch.before.sub_(1)
            self.retain()
            self._fed = 0
            self._begin_reading()
        self.read_rows()

    def _occupied(self) -> Iterator[tuple[int, SequencePages]]:
        for place, sequence in enumerate(self._at):
            if sequence is not None:
                yield place, sequence

    def _copy_in(self, sequence: SequencePages, place: int) -> None:
        tables, batch, slot = self._pool.tables, self.batch, sequence.slot
        rules = tables.rules[slot]
        self._rows[place] = tables.rows[slot]
        self._has_metadata[place] = tables.has_metadata[slot]
        scored = needs_scores(rules) & self._exists
        self._scores[place] = scored.any()
        pages, metadata = (int(counts[place].max(initial=0)) for counts in self._counts(0))
        parts = (
            (batch.rules[place], rule_words(rules)),
            (batch.lengths[place], tables.lengths[slot]),
            (batch.rows[place], tables.rows[slot]),
            (batch.pages[place, :, :, :pages], tables.pages[slot, :, :, :pages]),
            (batch.metadata[place, :, :, :metadata], tables.metadata[slot, :, :, :metadata]),
            (batch.has_metadata[place], tables.has_metadata[slot]),
            (batch.weighted[place], tables.weighted[slot]),
            (self.scratch.scored[place], scored),
            (self._bounded[place], may_evict(rules) & self._exists),
        )
        values = [np.ascontiguousarray(part).reshape(-1).view(np.uint8) for _, part in parts]
        copied = self._uploads.copy(np.concatenate([np.pad(v, (0, -len(v) % 8)) for v in values]))
        begin = 0
        for (target, _), part in zip(parts, values, strict=True):
            there = copied[begin : begin + len(part)]
            target.copy_(there.view(target.dtype).view(target.shape))
            begin += len(part) + -len(part) % 8
        self._active[place].fill_(1)

    def _copy_out(self, leaving: Sequence[tuple[int, SequencePages]]) -> None:
        """Copy the tables of these places, and as many spare pages as belong to them: one wait."""
        tables, batch = self._pool.tables, self.batch
        counts = self._counts(0)
        used = [sequence.reservation.used for _, sequence in leaving]
        spare = [
            sum(one) - sum(int(counted[place].sum()) for place, _ in leaving)
            for one, counted in zip(
                ([u.rows for u in used], [u.metadata for u in used]), counts, strict=True
            )
        ]
        parts = [_taken(self._free_rows, spare[0]), _taken(self._free_metadata, spare[1])]
        for place, _ in leaving:
            columns = [int(counted[place].max(initial=0)) for counted in counts]
            parts += [
                batch.lengths[place].int().view(1),
                batch.pages[place, :, :, : columns[0]],
                batch.metadata[place, :, :, : columns[1]],
            ]
        spare_rows, spare_metadata, *found = _read(parts)
        rows_left, metadata_left = spare_rows.tolist(), spare_metadata.tolist()
        for number, (place, sequence) in enumerate(leaving):
            length, pages, metadata = found[3 * number : 3 * number + 3]
            slot, reservation = sequence.slot, sequence.reservation
            tables.lengths[slot] = length[0]
            tables.rows[slot] = self._rows[place]
            tables.pages[slot, :, :, : pages.shape[-1]] = pages
            tables.metadata[slot, :, :, : metadata.shape[-1]] = metadata
            held = _first(pages, counts[0][place])
            back = reservation.rows.used - len(held)
            reservation.rows.end_loan(held, rows_left[:back], self._lent_rows)
            held = _first(metadata, counts[1][place])
            marks_back = reservation.metadata.used - len(held)
            reservation.metadata.end_loan(held, metadata_left[:marks_back], self._lent_metadata)
            del rows_left[:back], metadata_left[:marks_back]

    def _clear(self, place: int) -> None:
        """Have a place hold no rows."""
        batch = self.batch
        self._at[place] = None
        self._rows[place], self._has_metadata[place], self._scores[place] = 0, False, False
        for table in (
            batch.rows,
            batch.lengths,
            batch.has_metadata,
            batch.weighted,
            self.scratch.scored,
            self._active,
        ):
            table[place].zero_()
        self._bounded[place].copy_(self._exists_there)
        batch.rules[place].copy_(self._empty_rules)

    def _begin_reading(self) -> None:
        exhausted = self._free_rows.exhausted, self._free_metadata.exhausted
        together = torch.cat((self.batch.rows.view(-1), *exhausted))
        self._downloads.append(Download.begin(together))

    def _read_rows(self, values: NDArray[np.int32]) -> None:
        """Take in the rows held, and whether a queue was exhausted."""
        assert not values[-2:].any(), "preallocated pages suffice"
        # places that were emptied meanwhile stay empty
        taken = np.array([sequence is not None for sequence in self._at])
        self._rows = values[:-2].reshape(self._rows.shape) * taken[:, None, None]

    def _counts(self, more: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return row and metadata pages of heads with `more` additional rows, `[places, L, H]`."""
        rows = np.where(self._exists, self._rows + more, 0)
        has_metadata = np.where(self._has_metadata, rows, 0)
        return -(-rows // self._row_pages.page_rows), -(-has_metadata // self._columns.page_rows)


def _taken(free: FreePages, count: int) -> torch.Tensor:
    """Take pages out of the queue, int32 `[count]`."""
    places = torch.arange(count, device=free.ring.device) + free.taken
    free.taken.add_(count)
    return free.ring[places % free.ring.numel()]


def _read(parts: Sequence[torch.Tensor]) -> list[NDArray[np.int32]]:
    """Copy int32 tensors to the host, all of them together."""
    together = torch.cat([part.reshape(-1) for part in parts]).cpu().numpy()
    ends = np.cumsum([part.numel() for part in parts])
    pieces = np.split(together, ends[:-1])
    return [piece.reshape(tuple(part.shape)) for piece, part in zip(pieces, parts, strict=True)]


def _first(table: NDArray[np.int32], counts: NDArray[np.int32]) -> list[int]:
    """Return the first `counts` pages of every head of a table `[L, H, P]`."""
    pages: list[int] = table[np.arange(table.shape[-1]) < counts[..., None]].tolist()
    return pages

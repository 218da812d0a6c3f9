"""A batch of sequences in the pool as arrays, without an object per head."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import torch
from numpy.typing import NDArray

from kvstore.kernels.device_batch import DeviceBatch, DeviceScratch
from kvstore.kernels.dispatch import runs_triton
from kvstore.kernels.host_batch import HostBatch, places, unquantized_rows
from kvstore.kernels.row_pages import RowIndex, RowPages
from kvstore.row_codecs import encode_rows
from kvstore.rule_table import may_evict, needs_scores, rule_words


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class RowMetadata:
    """The pool's memory of metadata: positions, scores, flags and log-weights of rows.

    A page is one sequence's own: `positions` int32, `scores` f32, `flags` uint8 and `log_weights`
    f32 `[M]` (empty as long as no head has any), `page_rows` rows a page.
    """

    positions: torch.Tensor
    scores: torch.Tensor
    flags: torch.Tensor
    log_weights: torch.Tensor
    page_rows: int

    def flat(self, pages: NDArray[np.int32], slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return flat rows of a head's slots, by its metadata pages."""
        starts = pages[slots // self.page_rows].astype(np.int64) * self.page_rows
        rows: NDArray[np.int64] = starts + slots % self.page_rows
        return rows


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class HeadTables:
    """Tables of all S sequences, at constant addresses. H is the largest head count of any layer.

    Slot n of a head lies in its page `n // page_rows` at row `n % page_rows`. Slots 0 to `rows` − 1
    are held, in no order of position.

    - `pages` int32 `[S, L, H, P]`: numbers of row pages. `page_rows` int64 `[S]`: rows of a row
      page under the sequence's layout.
    - `metadata` int32 `[S, L, H, P]`: numbers of metadata pages, of heads where `has_metadata` bool
      `[S, L, H]`. In any other head slot n holds position n.
    - `weighted` bool `[S, L, H]`: whether the head's rows have log-weights.
    - `rows` int32 `[S, L, H]`: rows held. `rules` `[S, L, H]` of `RULE_DTYPE`. `lengths` int64
      `[S]`: tokens seen. `kv_heads` int32 `[L]`: heads of each layer.
    """

    kv_heads: NDArray[np.int32]
    pages: NDArray[np.int32]
    metadata: NDArray[np.int32]
    rows: NDArray[np.int32]
    has_metadata: NDArray[np.bool_]
    weighted: NDArray[np.bool_]
    rules: NDArray[np.void]
    lengths: NDArray[np.int64]
    page_rows: NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class StagedRows:
    """Rows of fed tokens until their retention chunk ends, in C staging slots.

    `keys`, `values` `[L, H, C, D]`, `flags` uint8 `[C]`. A chunk occupies consecutive slots. Rows
    of a sequence whose codec rotates are stored rotated.
    """

    keys: torch.Tensor
    values: torch.Tensor
    flags: NDArray[np.uint8]

    @classmethod
    def of(cls, unquantized: RowPages, tables: HeadTables, staging_slots: int) -> StagedRows:
        """Allocate `staging_slots` slots; `unquantized`: pages of rows in the model's dtype."""
        size = (*tables.rows.shape[1:], staging_slots, unquantized.layout.head_size)
        new = unquantized.keys.codes.new_empty
        return cls(new(size), new(size), np.zeros(staging_slots, np.uint8))

    def put(
        self, layer: int, staging_slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> None:
        """Store a layer's rows `[H, N, D]` of N tokens in `staging_slots` int64 `[N]`."""
        heads = k.shape[0]
        self.keys[layer, :heads, staging_slots] = k
        self.values[layer, :heads, staging_slots] = v


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ArrivingRows:
    """Rows of chunks under their codec, `[L, H, C, width]` of the codec's storage dtype.

    `staging_slots` int64 `[B]`: the first slot of each chunk.
    """

    keys: torch.Tensor
    values: torch.Tensor
    staging_slots: NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class PagedBatch:
    """B sequences of one layout, each of which feeds a retention chunk or a part of one.

    Rows lie in `row_pages`, metadata in `columns`, staged rows in `staged`. int64 `[B]` each:
    `slots`, the sequences' indices in the tables; `staging_slots`, the first slot of each chunk;
    `before`, tokens of the chunk that earlier parts fed; `counts`, tokens that this part feeds.
    """

    row_pages: RowPages
    columns: RowMetadata
    tables: HeadTables
    staged: StagedRows
    slots: NDArray[np.int64]
    staging_slots: NDArray[np.int64]
    before: NDArray[np.int64]
    counts: NDArray[np.int64]

    @property
    def on_cpu_in_f32(self) -> bool:
        """Whether the compiled CPU kernels can run here."""
        keys = self.staged.keys
        return keys.device.type == "cpu" and keys.dtype == torch.float32

    @property
    def on_triton(self) -> bool:
        """Whether the Triton kernels run here."""
        return runs_triton(self.staged.keys)

    @functools.cached_property
    def single(self) -> bool:
        """Whether every block is one token."""
        return bool((self.chunk_tokens == 1).all())

    @property
    def rows(self) -> NDArray[np.int32]:
        """Rows held, `[B, L, H]`."""
        rows: NDArray[np.int32] = self.tables.rows[self.slots]
        return rows

    @property
    def chunk_tokens(self) -> NDArray[np.int64]:
        """Tokens of each block once this piece is fed, `[B]`."""
        return self.before + self.counts

    @property
    def query_starts(self) -> NDArray[np.int64]:
        """Index of each sequence's first query among all that are fed in this step, `[B]`."""
        starts: NDArray[np.int64] = np.cumsum(self.counts) - self.counts
        return starts

    def token_staging_slots(self) -> NDArray[np.int64]:
        """The cell of every token fed now, in order, `[N]`."""
        first = np.repeat(self.staging_slots + self.before - self.query_starts, self.counts)
        staging_slots: NDArray[np.int64] = first + np.arange(int(self.counts.sum()))
        return staging_slots

    def of(self, chosen: NDArray[np.int64]) -> PagedBatch:
        """Some of the sequences."""
        return dataclasses.replace(
            self,
            slots=self.slots[chosen],
            staging_slots=self.staging_slots[chosen],
            before=self.before[chosen],
            counts=self.counts[chosen],
        )

    @functools.cached_property
    def on_device(self) -> DeviceBatch:
        """The same on the device, copied once: later changes of the tables are not seen there."""
        tables, columns, slots, rows = self.tables, self.columns, self.slots, self.rows
        device = self.staged.keys.device
        most = int((rows + self.chunk_tokens[:, None, None]).max(initial=1))
        ends = rows.transpose(1, 0, 2).reshape(rows.shape[1], -1).cumsum(1, dtype=np.int32)
        weighted = tables.weighted[slots]

        def copied(values: NDArray[np.generic]) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(device)

        def pages(table: NDArray[np.int32], page_rows: int) -> torch.Tensor:
            return copied(table[slots, :, :, : -(-most // page_rows)])

        return DeviceBatch(
            row_pages=self.row_pages,
            positions=columns.positions,
            scores=columns.scores,
            metadata_flags=columns.flags,
            log_weights=columns.log_weights,
            metadata_page_rows=columns.page_rows,
            kv_heads=copied(tables.kv_heads),
            pages=pages(tables.pages, self.row_pages.page_rows),
            metadata=pages(tables.metadata, columns.page_rows),
            rows=copied(rows),
            has_metadata=copied(tables.has_metadata[slots]),
            weighted=copied(weighted),
            rules=copied(rule_words(tables.rules[slots])),
            lengths=copied(tables.lengths[slots]),
            ends=copied(ends),
            new_keys=self.staged.keys,
            new_values=self.staged.values,
            flags=copied(self.staged.flags),
            staging_slots=copied(self.staging_slots.astype(np.int32)),
            before=copied(self.before.astype(np.int32)),
            counts=copied(self.counts.astype(np.int32)),
            first_queries=copied(self.query_starts.astype(np.int32)),
            most=int(self.counts.max(initial=1)),
            single=bool((self.counts == 1).all()),
            row_bound=int(ends[:, -1].max(initial=1)),
            weighted_layers=tuple(bool(some.any()) for some in weighted.transpose(1, 0, 2)),
        )

    @functools.cached_property
    def on_host(self) -> HostBatch:
        """The same as arrays; only `held` does not see later changes of the tables."""
        row_pages, columns, staged = self.row_pages, self.columns, self.staged
        layout, page_layout = row_pages.layout, row_pages.page_layout
        return HostBatch(
            arena=row_pages.arena.numpy(),
            floats=unquantized_rows(row_pages.arena, layout),
            key_places=places(layout.keys, page_layout.page_bytes, 0, page_layout.key_scales),
            value_places=places(
                layout.values,
                page_layout.page_bytes,
                page_layout.value_offset,
                page_layout.value_scales,
            ),
            positions=columns.positions.numpy(),
            log_weights=columns.log_weights.numpy(),
            new_keys=staged.keys.numpy(),
            new_values=staged.values.numpy(),
            kv_heads=self.tables.kv_heads.tolist(),
            held=self.rows.sum((0, 2)).tolist(),
        )

    def held(self, b: int, layer: int, head: int) -> RowIndex:
        """Return the index of a head's rows in the row pages, `[R]`."""
        tables, slot = self.tables, self.slots[b]
        slots = np.arange(tables.rows[slot, layer, head], dtype=np.int64)
        return self.row_pages.index(tables.pages[slot, layer, head], slots)

    def arriving(self) -> ArrivingRows:
        """Return the chunks' rows under the layout of the sequences."""
        layout, staged = self.row_pages.layout, self.staged
        if layout.unquantized:
            return ArrivingRows(staged.keys, staged.values, self.staging_slots)
        spans = [
            np.arange(first, first + count)
            for first, count in zip(self.staging_slots, self.chunk_tokens, strict=True)
        ]
        staging_slots = torch.from_numpy(np.concatenate(spans)).to(staged.keys.device)
        return ArrivingRows(
            encode_rows(staged.keys[:, :, staging_slots], layout.keys, pre_rotated=True),
            encode_rows(staged.values[:, :, staging_slots], layout.values, pre_rotated=True),
            np.cumsum(self.chunk_tokens) - self.chunk_tokens,
        )

    def positions(self, b: int, layer: int, head: int) -> torch.Tensor:
        """Return the original positions of a head's rows, int32 `[R]`."""
        tables, slot, device = self.tables, self.slots[b], self.columns.positions.device
        slots = np.arange(tables.rows[slot, layer, head], dtype=np.int64)
        if not tables.has_metadata[slot, layer, head]:
            return torch.from_numpy(slots.astype(np.int32)).to(device)
        metadata = self.columns.flat(tables.metadata[slot, layer, head], slots)
        return self.columns.positions[torch.from_numpy(metadata).to(device)]


@dataclasses.dataclass(frozen=True, eq=False)
class StepScratch:
    """Results of a step that has not changed any cache yet.

    A head that may drop rows has R + m entries: one per row held, then one per token of the chunk
    so far.

    - `starts` int64 `[B, L, H]`: the head's first entry; −1 for a head without entries.
    - `row_attention` f32, per entry: the attention probability that the row received from the
      chunk's queries so far, averaged over the G query heads. Attention adds to it in heads where
      `scored` bool `[B, L, H]`. The retention decision turns it into the row's new score.
    - `stays` bool, per entry: the decision. Entries lie on the device of the batch's rows.
    """

    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    scored: NDArray[np.bool_]
    row_attention: torch.Tensor
    stays: torch.Tensor

    @classmethod
    def of(cls, batch: PagedBatch) -> StepScratch:
        """Allocate the entries of a step, with zero attention."""
        rules, rows = batch.tables.rules[batch.slots], batch.rows
        exists = np.arange(rows.shape[2]) < batch.tables.kv_heads[:, None]
        bounded = may_evict(rules) & exists
        sizes = np.where(bounded, rows + batch.chunk_tokens[:, None, None], 0)
        ends = sizes.cumsum().reshape(sizes.shape)
        total, device = int(sizes.sum()), batch.staged.keys.device
        return cls(
            np.where(bounded, ends - sizes, -1),
            sizes,
            needs_scores(rules) & exists,
            torch.zeros(total, device=device),
            torch.empty(total, dtype=torch.bool, device=device),
        )

    def of_sequences(self, chosen: NDArray[np.int64]) -> StepScratch:
        """Some of the sequences, in the same memory."""
        return dataclasses.replace(
            self,
            starts=self.starts[chosen],
            sizes=self.sizes[chosen],
            scored=self.scored[chosen],
        )

    @functools.cached_property
    def scored_layers(self) -> tuple[bool, ...]:
        """Whether any head is scored, by layer."""
        return tuple(bool(some.any()) for some in self.scored.transpose(1, 0, 2))

    @functools.cached_property
    def on_device(self) -> DeviceScratch:
        """The same where kernels on a device read it; entries are the same memory."""
        device = self.row_attention.device
        return DeviceScratch(
            torch.from_numpy(self.starts).to(device),
            torch.from_numpy(self.scored).to(device),
            self.row_attention,
            self.stays.view(torch.uint8),
            self.scored_layers,
        )

    def row_attention_of(self, b: int) -> torch.Tensor:
        """One sequence's entries, head after head."""
        first = int(self.sizes[:b].sum())
        return self.row_attention[first : first + int(self.sizes[b].sum())]

    def stays_of(self, place: tuple[int, int, int]) -> NDArray[np.bool_]:
        """Return the decision about a head's rows, in host memory."""
        start, size = int(self.starts[place]), int(self.sizes[place])
        stays: NDArray[np.bool_] = self.stays[start : start + size].cpu().numpy()
        return stays

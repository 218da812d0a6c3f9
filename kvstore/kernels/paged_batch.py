"""A batch of sequences in the pool as arrays, without an object per head."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import torch
from numpy.typing import NDArray

from kvstore.kernels.device_batch import DeviceBatch
from kvstore.kernels.dispatch import runs_triton
from kvstore.kernels.head_tables import HeadTables, RowMetadata
from kvstore.kernels.host_arrays import TokenArrays
from kvstore.kernels.host_batch import HostBatch, row_arrays
from kvstore.kernels.row_pages import RowIndex, RowPages
from kvstore.kernels.staged_rows import ArrivingRows, StagedRows
from kvstore.row_codecs import encode_rows
from kvstore.rule_table import rule_words


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
        staged = self.staged
        return HostBatch(
            rows=row_arrays(self.row_pages),
            metadata=self.columns.on_host(),
            tables=self.tables,
            tokens=TokenArrays(
                staged.keys.numpy(),
                staged.values.numpy(),
                staged.flags,
                self.slots,
                self.staging_slots,
                self.chunk_tokens,
            ),
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

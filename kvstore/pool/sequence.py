"""One sequence's cache in the pool."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from kvstore.cache import HeadRows, LayerShape, RaggedLayer
from kvstore.errors import InvalidParameter
from kvstore.kernels.head_tables import HeadTables
from kvstore.kernels.row_pages import RowPages
from kvstore.kernels.staged_rows import StagedRows
from kvstore.pool.bounds import pages_for, rows_bound
from kvstore.pool.reservation import PageCount, Reservation
from kvstore.pool.storage import PageStorage
from kvstore.pool.tables import PageTables
from kvstore.row_codecs import MODEL_ROWS, KeyValueLayout, RowCodec
from kvstore.rule_table import may_evict, rule_from_record, rule_to_record


class Pool(Protocol):
    """The part of a pool that its sequences use."""

    shapes: tuple[LayerShape, ...]
    page_rows: int
    storage: PageStorage
    tables: HeadTables

    def open(
        self,
        length: int = 0,
        reserve: PageCount | None = None,
        codec: RowCodec = MODEL_ROWS,
        owner: str = "",
    ) -> SequencePages:
        """Open another sequence; raises `PoolExhausted`."""

    def close_slot(self, slot: int) -> None:
        """Free a sequence's place in the tables."""

    def new_staged_rows(self, slots: int) -> StagedRows:
        """Allocate memory for the rows of `slots` fed tokens."""


class SequencePages:
    """A sequence's tables of pages per (layer, KV head), within its reservation.

    A layer that was never loaded starts empty, with full heads. Rows are held in `row_pages`, under
    its layout; fed rows are coded when they are retained. For one thread at a time. The reservation
    belongs to the sequence and is released with it.

    A device may step the sequence by its own copy of the tables (see `stepped_on_device`). The
    host's tables are then out of date, and `sync` must be called before they are read.
    """

    def __init__(
        self,
        pool: Pool,
        slot: int,
        reservation: Reservation,
        length: int,
        row_pages: RowPages,
        owner: str = "",
    ) -> None:
        self.pool = pool
        self.owner = owner
        self.slot = slot
        self.reservation = reservation
        self.row_pages = row_pages
        self._leave_device: Callable[[], None] | None = None
        self._tables = PageTables(pool.tables, slot, reservation, pool.storage, row_pages)
        self.length = length
        # forks and their origins search for shared pages before they write
        self.may_share = False
        self._open = True

    @property
    def shapes(self) -> tuple[LayerShape, ...]:
        """The shapes of the model's layers."""
        return self.pool.shapes

    @property
    def codec(self) -> RowCodec:
        """The codec of the sequence's rows."""
        return self.row_pages.layout.codec

    @property
    def tables(self) -> PageTables:
        """The sequence's tables in the pool; requires `sync`."""
        assert self._leave_device is None, "sync before the tables are read"
        return self._tables

    @property
    def length(self) -> int:
        """Tokens seen: the cache's `next_position`, and fed tokens; requires `sync`."""
        assert self._leave_device is None, "sync before the length is read"
        return int(self.pool.tables.lengths[self.slot])

    @length.setter
    def length(self, tokens: int) -> None:
        self.pool.tables.lengths[self.slot] = tokens

    def stepped_on_device(self, leave: Callable[[], None] | None) -> None:
        """Set the function that copies a device's tables back; None when that has happened."""
        self._leave_device = leave

    def sync(self) -> None:
        """Bring the host's tables up to date.

        If a device steps the sequence, its whole batch leaves the device: this runs kernels and
        waits for them.
        """
        if self._leave_device is not None:
            self._leave_device()

    def need(self, layer: RaggedLayer) -> PageCount:
        """Return the pages that `load` takes out of the reservation."""
        rows, metadata = self.row_pages.page_rows, self.pool.page_rows
        counts = layer.head_row_counts()
        has_metadata = [
            n for n, head in zip(counts, layer.heads(), strict=True) if self._has_metadata(head)
        ]
        return PageCount(
            sum(pages_for(n, rows) for n in counts),
            sum(pages_for(n, metadata) for n in has_metadata),
        )

    def load(self, layer_index: int, layer: RaggedLayer) -> None:
        """Fill an empty layer; the reservation must hold `need(layer)` pages.

        Raises `PoolExhausted` or `InvalidParameter` before any change.
        """
        self._require_fit(layer_index, layer)
        self.reservation.require(self.need(layer))
        heads = tuple(layer.heads())
        for head, source in enumerate(heads):
            self.tables.rules[layer_index, head] = rule_to_record(source.rule)
            self.tables.has_metadata[layer_index, head] = self._has_metadata(source)
            self.tables.weighted[layer_index, head] = source.log_weights is not None
        rows = self.tables.rows.copy()
        rows[layer_index, : len(heads)] = layer.head_row_counts()
        self.tables.extend(rows)
        self.tables.trim(rows)
        for head, source in enumerate(heads):
            self._write(layer_index, head, source)

    def fork(self) -> SequencePages:
        """Open another sequence in the same state on the same rows, after `sync`.

        Either sequence copies a shared page before it writes there. Raises `PoolExhausted` if there
        is no room for the fork's metadata, which is not shared.
        """
        self.sync()
        child = self.pool.open(
            self.length, PageCount(0, self.reservation.used.metadata), self.codec, self.owner
        )
        try:
            child.tables.copy_from(self.tables)
        except BaseException:
            child.release()
            raise
        child.may_share = self.may_share = True
        return child

    def heads(self, layer_index: int) -> tuple[HeadRows, ...]:
        """Copy the layer's rows, coded as they are held; a head's rows are in order of slots."""
        return tuple(
            self._read(layer_index, head) for head in range(self.shapes[layer_index].kv_heads)
        )

    def export(self) -> tuple[RaggedLayer, ...]:
        """Copy all layers to host memory after `sync`, rows in the order of their slots.

        Loaded again, the copies give the same cache, bit by bit and slot by slot.
        """
        self.sync()
        return tuple(RaggedLayer.of_heads(self.heads(n)) for n in range(len(self.shapes)))

    def row_counts(self) -> tuple[tuple[int, ...], ...]:
        """Return the rows held, per layer and KV head; requires `sync`."""
        return tuple(
            tuple(rows[: shape.kv_heads].tolist())
            for rows, shape in zip(self.tables.rows, self.shapes, strict=True)
        )

    @property
    def resident_bytes(self) -> int:
        """Bytes of the pages in use, metadata and unused rows included; requires `sync`.

        Shared pages count in full.
        """
        assert self._leave_device is None, "sync before the bytes are read"
        used, storage = self.reservation.used, self.pool.storage
        return used.rows * storage.row_page_bytes + used.metadata * storage.metadata_page_bytes

    @property
    def dense_rows(self) -> int:
        """Rows of a dense cache of as many tokens; a sliding layer holds its window."""
        return sum(shape.dense_rows(self.length) for shape in self.shapes)

    @property
    def dense_bytes(self) -> int:
        """Bytes of keys and values of a dense cache of as many tokens."""
        return self.dense_rows * self.pool.storage.unquantized.layout.row_bytes

    def pages_bound(self, final_length: int) -> PageCount:
        """Return the pages that suffice up to `final_length` tokens; see `rows_bound`."""
        bounds, length = PageCount(), self.length
        for layer, counts in enumerate(self.row_counts()):
            for head, rows in enumerate(counts):
                rule = rule_from_record(self.tables.rules[layer, head])
                most = rows_bound(rule, rows, length, final_length)
                metadata = pages_for(most, self.pool.page_rows)
                bounds += PageCount(
                    pages_for(most, self.row_pages.page_rows),
                    metadata * bool(self.tables.has_metadata[layer, head]),
                )
        return bounds

    def release(self) -> None:
        """Release all pages and close the sequence, after `sync`. Further calls do nothing."""
        if self._open:
            self._open = False
            self.sync()
            tables = self.tables
            self.reservation.release()
            tables.clear()
            self.length = 0
            self.pool.close_slot(self.slot)

    def _has_metadata(self, head: HeadRows) -> bool:
        """Whether a head's rows need metadata: no, if slot n is position n and stays so."""
        if head.log_weights is not None or may_evict(rule_to_record(head.rule)):
            return True
        dense = torch.arange(self.length, dtype=torch.int32, device=head.positions.device)
        return not torch.equal(head.positions, dense)

    def _require_fit(self, layer_index: int, layer: RaggedLayer) -> None:
        assert not self.tables.rows[layer_index].any(), "a layer loads once"
        shape, layout = self.shapes[layer_index], self.row_pages.layout
        if (layer.kv_heads, layer.head_size) != (shape.kv_heads, shape.head_size):
            got = f"{layer.kv_heads} heads of size {layer.head_size}"
            raise InvalidParameter(f"layers[{layer_index}]", f"{got}, the model has {shape}")
        given = layer.layout or KeyValueLayout(MODEL_ROWS, layer.head_size, layer.keys.dtype)
        if given != layout:
            got, wanted = (f"{c.codec.name} rows of {c.dtype}" for c in (given, layout))
            raise InvalidParameter(f"layers[{layer_index}]", f"{got}, the sequence has {wanted}")

    def _read(self, layer: int, head: int) -> HeadRows:
        tables, columns = self.tables, self.pool.storage.columns
        rule, slots = (
            rule_from_record(tables.rules[layer, head]),
            range(int(tables.rows[layer, head])),
        )
        rows = tables.index(layer, head, slots)
        positions = torch.arange(len(slots), dtype=torch.int32, device=columns.positions.device)
        scores = flags = log_weights = None
        if tables.has_metadata[layer, head]:
            metadata = tables.metadata_index(layer, head, slots)
            positions = columns.positions[metadata]
            scores = columns.scores[metadata] if rule.needs_scores else None
            flags = columns.flags[metadata] if rule.needs_flags else None
            if tables.weighted[layer, head]:
                log_weights = columns.log_weights[metadata]
        row_pages = self.row_pages
        keys, values = row_pages.keys[rows], row_pages.values[rows]
        layout = None if row_pages.layout.unquantized else row_pages.layout
        return HeadRows(rule, keys, values, positions, scores, flags, log_weights, layout)

    def _write(self, layer: int, head: int, source: HeadRows) -> None:
        if source.log_weights is not None:
            self.pool.storage.keep_log_weights()
        columns, slots = self.pool.storage.columns, range(source.rows)
        rows = self.tables.index(layer, head, slots)
        row_pages = self.row_pages
        row_pages.keys[rows] = source.keys.to(row_pages.arena.device)
        row_pages.values[rows] = source.values.to(row_pages.arena.device)
        if self.tables.has_metadata[layer, head]:
            metadata = self.tables.metadata_index(layer, head, slots)
            for column, given in (
                (columns.positions, source.positions),
                (columns.scores, source.scores),
                (columns.flags, source.flags),
                (columns.log_weights, source.log_weights),
            ):
                if given is not None:
                    column[metadata] = given.to(column.device)

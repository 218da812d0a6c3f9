"""One sequence's cache in the pool."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvstore.cache import HeadRows, LayerShape, RaggedLayer
from kvstore.errors import InvalidParameter
from kvstore.kernels.retain import RowMarks, retain_moves
from kvstore.pool.bounds import pages_for, rows_bound
from kvstore.pool.carry import carry_out, fill
from kvstore.pool.head import HeadPages
from kvstore.pool.reservation import Reservation


class SequencePages:
    """Tables of pages per (layer, KV head) for one sequence, within its reservation.

    `length` is the number of tokens seen: the cache's `next_position` at first, then what was
    fed. A layer that was never loaded starts empty, with full heads. Not for use from several
    threads at once; the reservation belongs to the sequence and is released with it.
    """

    def __init__(
        self, reservation: Reservation, shapes: tuple[LayerShape, ...], length: int = 0
    ) -> None:
        for shape in shapes:
            if shape.head_size != reservation.storage.head_size:
                expected = reservation.storage.head_size
                raise InvalidParameter("head_size", f"{shape.head_size}, the pool's is {expected}")
        self.length = length
        self.shapes = shapes
        self.reservation = reservation
        self._storage = reservation.storage
        self._layers = tuple(
            tuple(HeadPages(reservation) for _ in range(shape.kv_heads)) for shape in shapes
        )

    def load(self, layer_index: int, layer: RaggedLayer) -> None:
        """Fill an empty layer. Raises `PoolExhausted` or `InvalidParameter` before any change."""
        heads = self._layers[layer_index]
        self._require_fit(layer_index, layer)
        counts = layer.head_row_counts()
        self._require_pages(heads, counts)
        for table, source in zip(heads, layer.heads(), strict=True):
            fill(self._storage, table, source)

    def heads(self, layer_index: int) -> tuple[HeadRows, ...]:
        """The layer's rows, each head's in no order of position.

        Views where a head's pages follow one another, else gathered copies; to be used before the
        layer's next `retain`, which overwrites victims in place.
        """
        return tuple(table.read() for table in self._layers[layer_index])

    def retain(
        self,
        layer_index: int,
        new_keys: torch.Tensor,
        new_values: torch.Tensor,
        first_position: int,
        new_flags: torch.Tensor,
        received: Sequence[torch.Tensor | None],
    ) -> None:
        """Apply each head's rule at a block's end.

        `new_keys`, `new_values` `[H, m, D]`; `new_flags` uint8 `[m]`, the fed tokens' classes;
        `received` is `AttentionStep.received`. All is decided first and needs no room beyond the
        rows that stay; raises `PoolExhausted` before any change if the reservation is too small.
        """
        tables, fed = self._layers[layer_index], new_keys.shape[1]
        length = first_position + fed
        marks = self._fed_marks(first_position, length, new_flags)
        moves = [
            retain_moves(table.rule, table.marks(), marks, share, length)
            for table, share in zip(tables, received, strict=True)
        ]
        self._require_pages(tables, [move.rows for move in moves])
        carry_out(self._storage, tables, moves, new_keys, new_values, marks)
        self.length = max(self.length, length)

    def row_counts(self) -> tuple[tuple[int, ...], ...]:
        """Rows held, per layer and KV head."""
        return tuple(tuple(table.rows for table in tables) for tables in self._layers)

    @property
    def resident_bytes(self) -> int:
        """Bytes of the pages in use, positions, scores and flags included."""
        return self.reservation.used_pages * self._storage.page_bytes

    @property
    def dense_bytes(self) -> int:
        """Bytes of keys and values if every head held every token seen."""
        row = 2 * self._storage.head_size * self._storage.keys.element_size()
        return sum(shape.kv_heads for shape in self.shapes) * self.length * row

    def pages_bound(self, final_length: int) -> int:
        """Pages that suffice until `final_length` tokens have been seen; see `rows_bound`."""
        page_rows = self._storage.page_rows
        return sum(
            pages_for(rows_bound(table.rule, table.rows, self.length, final_length), page_rows)
            for tables in self._layers
            for table in tables
        )

    def release(self) -> None:
        """Give all pages back and end the reservation. Further calls do nothing."""
        self.reservation.release()
        self._layers = tuple(
            tuple(HeadPages(self.reservation) for _ in tables) for tables in self._layers
        )

    def _require_fit(self, layer_index: int, layer: RaggedLayer) -> None:
        assert not any(table.rows for table in self._layers[layer_index]), "a layer loads once"
        shape, dtype = self.shapes[layer_index], self._storage.keys.dtype
        if (layer.kv_heads, layer.head_size) != (shape.kv_heads, shape.head_size):
            got = f"{layer.kv_heads} heads of size {layer.head_size}"
            raise InvalidParameter(f"layers[{layer_index}]", f"{got}, the model has {shape}")
        if layer.keys.dtype != dtype:
            raise InvalidParameter(
                f"layers[{layer_index}]", f"{layer.keys.dtype}, the pool has {dtype}"
            )

    def _require_pages(self, tables: Sequence[HeadPages], rows: Sequence[int]) -> None:
        missing = (table.missing_pages(count) for table, count in zip(tables, rows, strict=True))
        self.reservation.require(sum(missing))

    def _fed_marks(self, first: int, length: int, flags: torch.Tensor) -> RowMarks:
        device = self._storage.positions.device
        positions = torch.arange(first, length, dtype=torch.int32, device=device)
        return RowMarks(positions, flags=flags.to(device))

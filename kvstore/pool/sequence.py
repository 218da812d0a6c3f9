"""One sequence's cache in the pool."""

from __future__ import annotations

from kvstore.cache import HeadRows, LayerShape, RaggedLayer
from kvstore.errors import InvalidParameter
from kvstore.pool.bounds import pages_for, rows_bound
from kvstore.pool.reservation import Reservation
from kvstore.pool.storage import read_rows
from kvstore.pool.tables import PageTables
from kvstore.rule_table import decode, encode


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
        self.tables = PageTables(reservation, shapes)

    def load(self, layer_index: int, layer: RaggedLayer) -> None:
        """Fill an empty layer. Raises `PoolExhausted` or `InvalidParameter` before any change."""
        self._require_fit(layer_index, layer)
        rows = self.tables.with_layer(layer_index, layer.head_row_counts())
        self.tables.require(rows)
        self.tables.extend(rows)
        self.tables.settle(rows)
        for head, source in enumerate(layer.heads()):
            self.tables.rules[layer_index, head] = encode(source.rule)
            self._write(layer_index, head, source)

    def heads(self, layer_index: int) -> tuple[HeadRows, ...]:
        """The layer's rows, each head's in no order of position.

        Views where a head's pages follow one another, else gathered copies; to be used before the
        next step, which overwrites victims in place.
        """
        return tuple(
            self._read(layer_index, head) for head in range(self.shapes[layer_index].kv_heads)
        )

    def row_counts(self) -> tuple[tuple[int, ...], ...]:
        """Rows held, per layer and KV head."""
        return tuple(
            tuple(rows[: shape.kv_heads].tolist())
            for rows, shape in zip(self.tables.rows, self.shapes, strict=True)
        )

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
            pages_for(rows_bound(decode(rule), rows, self.length, final_length), page_rows)
            for layer, counts in enumerate(self.row_counts())
            for rule, rows in zip(self.tables.rules[layer], counts, strict=False)
        )

    def release(self) -> None:
        """Give all pages back and end the reservation. Further calls do nothing."""
        self.reservation.release()
        self.tables.clear()

    def _require_fit(self, layer_index: int, layer: RaggedLayer) -> None:
        assert not self.tables.rows[layer_index].any(), "a layer loads once"
        shape, dtype = self.shapes[layer_index], self._storage.keys.dtype
        if (layer.kv_heads, layer.head_size) != (shape.kv_heads, shape.head_size):
            got = f"{layer.kv_heads} heads of size {layer.head_size}"
            raise InvalidParameter(f"layers[{layer_index}]", f"{got}, the model has {shape}")
        if layer.keys.dtype != dtype:
            raise InvalidParameter(
                f"layers[{layer_index}]", f"{layer.keys.dtype}, the pool has {dtype}"
            )

    def _read(self, layer: int, head: int) -> HeadRows:
        storage, rule = self._storage, decode(self.tables.rules[layer, head])
        index = self.tables.index(layer, head, range(self.tables.rows[layer, head]))
        return HeadRows(
            rule,
            read_rows(storage.keys, index),
            read_rows(storage.values, index),
            read_rows(storage.positions, index),
            read_rows(storage.scores, index) if rule.needs_scores else None,
            read_rows(storage.flags, index) if rule.needs_flags else None,
        )

    def _write(self, layer: int, head: int, source: HeadRows) -> None:
        storage, index = self._storage, self.tables.index(layer, head, range(source.rows))
        storage.keys[index] = source.keys.to(storage.keys.device)
        storage.values[index] = source.values.to(storage.keys.device)
        storage.positions[index] = source.positions.to(storage.keys.device)
        if source.scores is not None:
            storage.scores[index] = source.scores.to(storage.keys.device)
        if source.flags is not None:
            storage.flags[index] = source.flags.to(storage.keys.device)

"""A batch for compiled kernels on the CPU: arrays, the same for all layers."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from kvstore.kernels.head_tables import HeadTables
from kvstore.kernels.host_arrays import MetadataArrays, RowArrays, TokenArrays
from kvstore.kernels.row_pages import RowPages
from kvstore.row_codecs import ElementCodec, KeyValueLayout, RowLayout

# codecs as compiled kernels tell them apart: by their place here
CODECS = tuple(ElementCodec)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class HostBatch:
    """B sequences of one layout.

    `held`: rows that the batch's heads hold together, by layer, when the object is made. `room`:
    working memory that layers leave to the next.
    """

    rows: RowArrays
    metadata: MetadataArrays
    tables: HeadTables
    tokens: TokenArrays
    kv_heads: list[int]
    held: list[int]
    room: list[NDArray[np.float32]] = dataclasses.field(default_factory=list)

    def working(self, lines: int) -> NDArray[np.float32]:
        """Room `[lines, R]` for the rows of any layer; what was left in it is garbage.

        Memory that is new in every layer costs more, by its page faults, than what it is used for.
        """
        most = max(self.held)
        if not self.room or len(self.room[0]) < lines:
            self.room[:] = [np.empty((lines, most), np.float32)]
        return self.room[0][:lines]


def row_arrays(row_pages: RowPages) -> RowArrays:
    """Return the arrays of row pages in host memory."""
    layout, page_layout = row_pages.layout, row_pages.page_layout
    return RowArrays(
        row_pages.arena.numpy(),
        _unquantized_rows(row_pages.arena, layout),
        _places(layout.keys, page_layout.page_bytes, 0, page_layout.key_scales),
        _places(
            layout.values,
            page_layout.page_bytes,
            page_layout.value_offset,
            page_layout.value_scales,
        ),
        row_pages.page_rows,
    )


def _unquantized_rows(arena: torch.Tensor, layout: KeyValueLayout) -> NDArray[np.float32]:
    """`RowArrays.floats`. Two indices, and the inner one from 0: only so are loops made vectors."""
    if not layout.unquantized:
        return np.empty((0, layout.head_size), np.float32)
    rows: NDArray[np.float32] = arena.view(torch.float32).view(-1, layout.head_size).numpy()
    return rows


def _places(layout: RowLayout, page_bytes: int, first: int, scales: int) -> NDArray[np.int64]:
    """`RowArrays.key_places`, of rows whose codes and scales begin at these bytes of a page."""
    codec = CODECS.index(layout.codec)
    return np.array((codec, layout.code_bytes, page_bytes, first, scales), np.int64)

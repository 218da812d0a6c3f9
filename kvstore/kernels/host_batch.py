"""A batch for compiled kernels on the CPU: arrays, the same for all layers."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from kvstore.row_codecs import ElementCodec, KeyValueLayout, RowLayout

# codecs as compiled kernels tell them apart: by their place here
CODECS = tuple(ElementCodec)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class HostBatch:
    """B sequences of one layout; see `PagedBatch` and `HeadTables` for what is not said here.

    `arena` uint8 is all pages, and `floats` the same memory as f32 rows `[N, D]`, in whose number
    none stands across two; empty where rows are coded. `key_places`, `value_places` int64 `[5]`:
    codec, bytes of a row's codes and of a page, and where in a page the codes and the scales begin.
    `held`: rows that the batch's heads hold together, by layer. `room`: working memory that layers
    leave to the next.
    """

    arena: NDArray[np.uint8]
    floats: NDArray[np.float32]
    key_places: NDArray[np.int64]
    value_places: NDArray[np.int64]
    positions: NDArray[np.int32]
    log_weights: NDArray[np.float32]
    new_keys: NDArray[np.float32]
    new_values: NDArray[np.float32]
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


def unquantized_rows(arena: torch.Tensor, layout: KeyValueLayout) -> NDArray[np.float32]:
    """`HostBatch.floats`. Two indices, and the inner one from 0: only so are loops made vectors."""
    if not layout.unquantized:
        return np.empty((0, layout.head_size), np.float32)
    rows: NDArray[np.float32] = arena.view(torch.float32).view(-1, layout.head_size).numpy()
    return rows


def places(layout: RowLayout, page_bytes: int, first: int, scales: int) -> NDArray[np.int64]:
    """`HostBatch.key_places`, of rows whose codes and scales begin at these bytes of a page."""
    codec = CODECS.index(layout.codec)
    return np.array((codec, layout.code_bytes, page_bytes, first, scales), np.int64)

"""Named tuples of arrays, which are the arguments of compiled kernels on the CPU.

numba takes a tuple apart into its fields, so that a field costs what a parameter does. Tuples are
flat, because numba 0.68 cannot pass nested ones into a `prange`. The classes have a module of their
own: numba's cache on disk finds them again by the name of an importable module.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class RowArrays(NamedTuple):
    """Row pages under one layout.

    `arena` uint8 is all pages, and `floats` the same memory as f32 rows `[N, D]`, in whose number
    no row stands across two; empty where rows are coded. `key_places`, `value_places` int64 `[5]`:
    codec, bytes of a row's codes and of a page, and where in a page the codes and the scales begin.
    """

    arena: NDArray[np.uint8]
    floats: NDArray[np.float32]
    key_places: NDArray[np.int64]
    value_places: NDArray[np.int64]
    page_rows: int


class MetadataArrays(NamedTuple):
    """The columns of `RowMetadata`, `[M]` each, with `page_rows` rows a page."""

    positions: NDArray[np.int32]
    scores: NDArray[np.float32]
    flags: NDArray[np.uint8]
    log_weights: NDArray[np.float32]
    page_rows: int


class TokenArrays(NamedTuple):
    """Tokens of B sequences: `StagedRows`, and int64 `[B]` of `PagedBatch`.

    `slots` index the tables, `staging_slots` the first staged row of each chunk, and
    `chunk_tokens` counts a chunk's tokens with those of this step.
    """

    keys: NDArray[np.float32]
    values: NDArray[np.float32]
    flags: NDArray[np.uint8]
    slots: NDArray[np.int64]
    staging_slots: NDArray[np.int64]
    chunk_tokens: NDArray[np.int64]


class EncodedTokenArrays(NamedTuple):
    """`ArrivingRows` as bytes: `keys`, `values` uint8 `[L, H, C, width]`."""

    keys: NDArray[np.uint8]
    values: NDArray[np.uint8]
    staging_slots: NDArray[np.int64]


class EntryArrays(NamedTuple):
    """The entries of `StepScratch`."""

    starts: NDArray[np.int64]
    scored: NDArray[np.bool_]
    row_attention: NDArray[np.float32]
    stays: NDArray[np.bool_]

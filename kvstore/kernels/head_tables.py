"""Tables of all heads' pages, and the columns of row metadata."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from kvstore.kernels.host_arrays import MetadataArrays


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

    def on_host(self) -> MetadataArrays:
        """Return the columns as arrays of the same memory."""
        return MetadataArrays(
            self.positions.numpy(),
            self.scores.numpy(),
            self.flags.numpy(),
            self.log_weights.numpy(),
            self.page_rows,
        )


class HeadTables(NamedTuple):
    """Tables of all S sequences, at constant addresses. H is the largest head count of any layer.

    Compiled kernels take the tuple as it is; see `host_arrays`.

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

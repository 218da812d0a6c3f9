"""What kernels see of a batch of sequences in the pool: arrays alone, no object per head."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from kvstore.rule_table import may_evict, needs_scores


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class PagedBatch:
    """B sequences' pages. H is the most KV heads of any layer; `kv_heads` says how many count.

    The columns are the whole pool's: `keys`, `values` `[N, D]`, `positions` int32, `scores` f32
    and `flags` uint8 `[N]`. Slot s of a head lies at row `s % page_rows` of its page
    `s // page_rows`, which begins at flat row `page · page_rows`. Slots 0 to `rows` − 1 are held,
    in no order of position.
    `pages` int32 `[B, L, H, P]`, `rows` int32 `[B, L, H]`, `rules` `[B, L, H]` of `RULE_DTYPE`,
    `kv_heads` int32 `[L]`, `lengths` int64 `[B]`: tokens seen before this step.
    """

    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor
    scores: torch.Tensor
    flags: torch.Tensor
    page_rows: int
    kv_heads: NDArray[np.int32]
    pages: NDArray[np.int32]
    rows: NDArray[np.int32]
    rules: NDArray[np.void]
    lengths: NDArray[np.int64]

    @property
    def on_cpu_in_f32(self) -> bool:
        """What the compiled CPU kernels are written for."""
        return self.keys.device.type == "cpu" and self.keys.dtype == torch.float32

    def flat_rows(self, sequence: int, layer: int, head: int, slots: int) -> torch.Tensor:
        """Flat rows of a head's first `slots` slots, int64 `[slots]`."""
        count = -(-slots // self.page_rows)
        starts = self.pages[sequence, layer, head, :count].astype(np.int64) * self.page_rows
        rows = (starts[:, None] + np.arange(self.page_rows)).reshape(-1)[:slots]
        return torch.from_numpy(rows).to(self.keys.device)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class FedRows:
    """The rows of the m tokens that a step feeds: `keys`, `values` `[B, L, H, m, D]`.

    Filled layer by layer during the forward pass.
    """

    keys: torch.Tensor
    values: torch.Tensor

    @classmethod
    def of(cls, batch: PagedBatch, fed: int) -> FedRows:
        """Room for a step that feeds each sequence `fed` tokens."""
        size = (*batch.rows.shape, fed, batch.keys.shape[1])
        return cls(batch.keys.new_empty(size), batch.keys.new_empty(size))

    def put(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Take in a layer's `[B, H, m, D]`."""
        heads = keys.shape[1]
        self.keys[:, layer, :heads] = keys
        self.values[:, layer, :heads] = values


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class StepScratch:
    """What a step finds out before it changes anything.

    A head that may lose rows has R + m entries, for the rows held and then the m fed, from
    `starts` int64 `[B, L, H]` on; −1 says that it has none. `received` f32: the probability each
    row received, summed over the m queries and averaged over the G query heads, written by
    attention where `scored` bool `[B, L, H]`; the retention decision turns it into the row's new
    score. `stays` bool: that decision.
    """

    starts: NDArray[np.int64]
    scored: NDArray[np.bool_]
    received: NDArray[np.float32]
    stays: NDArray[np.bool_]

    @classmethod
    def of(cls, batch: PagedBatch, fed: int) -> StepScratch:
        """Room for a step that feeds each sequence `fed` tokens."""
        exists = np.arange(batch.rows.shape[2]) < batch.kv_heads[:, None]
        bounded = may_evict(batch.rules) & exists
        sizes = np.where(bounded, batch.rows.astype(np.int64) + fed, 0)
        ends = sizes.cumsum().reshape(sizes.shape)
        total = int(sizes.sum())
        return cls(
            np.where(bounded, ends - sizes, -1),
            needs_scores(batch.rules) & exists,
            np.empty(total, np.float32),
            np.empty(total, np.bool_),
        )

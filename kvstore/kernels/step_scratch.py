"""Results of a decode step before any cache is changed."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import torch
from numpy.typing import NDArray

from kvstore.kernels.device_batch import DeviceScratch
from kvstore.kernels.host_arrays import EntryArrays
from kvstore.kernels.paged_batch import PagedBatch
from kvstore.rule_table import may_evict, needs_scores


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

    @functools.cached_property
    def on_host(self) -> EntryArrays:
        """The same as arrays of the same memory."""
        attention, stays = self.row_attention.numpy(), self.stays.numpy()
        return EntryArrays(self.starts, self.scored, attention, stays)

    def row_attention_of(self, b: int) -> torch.Tensor:
        """One sequence's entries, head after head."""
        first = int(self.sizes[:b].sum())
        return self.row_attention[first : first + int(self.sizes[b].sum())]

    def stays_of(self, place: tuple[int, int, int]) -> NDArray[np.bool_]:
        """Return the decision about a head's rows, in host memory."""
        start, size = int(self.starts[place]), int(self.sizes[place])
        stays: NDArray[np.bool_] = self.stays[start : start + size].cpu().numpy()
        return stays

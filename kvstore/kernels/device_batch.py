"""A batch for kernels on a device: the tables of its sequences as tensors there."""

from __future__ import annotations

import dataclasses

import torch

from kvstore.kernels.row_pages import RowPages


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class DeviceBatch:
    """B sequences of one layout and their fed tokens; see `PagedBatch` and `HeadTables`.

    Tables of the batch's sequences, in their order: `pages`, `metadata` int32 `[B, L, H, P]`,
    `rows` int32, `has_metadata`, `weighted` bool `[B, L, H]`, `rules` int64 `[B, L, H, words]`
    (`rule_words`), `lengths` int64 `[B]`, `kv_heads` int32 `[L]`. `ends` int32 `[L, B · H]`: prefix
    sums of the heads' rows in each layer.

    Fed rows: `new_keys`, `new_values` `[L, H, C, D]`, `flags` uint8 `[C]`. int32 `[B]` each:
    `staging_slots`, the first slot of each chunk; `before`, tokens that earlier parts fed;
    `counts`, tokens that this part feeds; `first_queries`, the index of the sequence's first query.
    `most`: the largest count. `single`: whether every count is 1. `row_bound`: an upper bound of
    the rows that the heads of one layer hold together. `weighted_layers`: whether rows have
    log-weights, per layer.
    """

    row_pages: RowPages
    positions: torch.Tensor
    scores: torch.Tensor
    metadata_flags: torch.Tensor
    log_weights: torch.Tensor
    metadata_page_rows: int
    kv_heads: torch.Tensor
    pages: torch.Tensor
    metadata: torch.Tensor
    rows: torch.Tensor
    has_metadata: torch.Tensor
    weighted: torch.Tensor
    rules: torch.Tensor
    lengths: torch.Tensor
    ends: torch.Tensor
    new_keys: torch.Tensor
    new_values: torch.Tensor
    flags: torch.Tensor
    staging_slots: torch.Tensor
    before: torch.Tensor
    counts: torch.Tensor
    first_queries: torch.Tensor
    most: int
    single: bool
    row_bound: int
    weighted_layers: tuple[bool, ...]

    @property
    def sequences(self) -> int:
        return self.rows.shape[0]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class DeviceScratch:
    """A `StepScratch` on the device: `starts` int64 and `scored` bool `[B, L, H]`, its entries
    `row_attention` f32 and `stays` uint8. `scored_layers` says in which layers any head is scored.
    """

    starts: torch.Tensor
    scored: torch.Tensor
    row_attention: torch.Tensor
    stays: torch.Tensor
    scored_layers: tuple[bool, ...]

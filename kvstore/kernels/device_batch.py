"""A batch for kernels on a device: the tables of its sequences as tensors there."""

from __future__ import annotations

import dataclasses

import torch

from kvstore.kernels.row_pages import RowPages


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class DeviceBatch:
    """B sequences of one coding, and what each feeds; see `PagedBatch` and `HeadTables`.

    The tables are those of the batch's sequences, in their order: `pages`, `marks` int32
    `[B, L, H, P]`, `rows` int32, `marked`, `weighted` bool `[B, L, H]`, `rules` int64
    `[B, L, H, words]` (`rule_words`), `lengths` int64 `[B]`, `kv_heads` int32 `[L]`. `ends` int32
    `[L, B · H]`: where each head's rows end in its layer's line of all rows.

    Fed rows: `new_keys`, `new_values` `[L, H, C, D]`, `flags` uint8 `[C]`; `cells`, `before`,
    `counts`, `first_queries` int32 `[B]`: where blocks begin, tokens of earlier pieces, tokens fed
    now, and where a sequence's queries begin among all. `most` is the largest count; `single` says
    that every one is 1. `row_bound` is at least the rows that a layer's heads hold
    together; `weighted_layers` says in which layers rows have log-weights.
    """

    store: RowPages
    positions: torch.Tensor
    scores: torch.Tensor
    metadata_flags: torch.Tensor
    log_weights: torch.Tensor
    metadata_page_rows: int
    kv_heads: torch.Tensor
    pages: torch.Tensor
    marks: torch.Tensor
    rows: torch.Tensor
    marked: torch.Tensor
    weighted: torch.Tensor
    rules: torch.Tensor
    lengths: torch.Tensor
    ends: torch.Tensor
    new_keys: torch.Tensor
    new_values: torch.Tensor
    flags: torch.Tensor
    cells: torch.Tensor
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
    `received` f32 and `stays` uint8. `scored_layers` says in which layers any head is scored.
    """

    starts: torch.Tensor
    scored: torch.Tensor
    received: torch.Tensor
    stays: torch.Tensor
    scored_layers: tuple[bool, ...]

"""Arguments of the attention kernels, grouped by meaning.

Triton specialises each integer of a tuple for the value 1 and for multiples of 16. Integers that
differ between launches (`VARYING`) are therefore parameters of their own, so that all layers and
batches of any size share one compiled form. No field is called `values` or `type`, because
Triton's tuples have attributes of these names.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from kvstore.kernels.coded_rows import PageForm

VARYING = ["layer", "count", "partial_queries", "staging_slots", "table_pages", "metadata_pages"]


class QueryRows(NamedTuple):
    """Queries or outputs `[N, HQ, D]` and their strides."""

    data: torch.Tensor
    token: int
    head: int
    size: int


class StagedTokens(NamedTuple):
    """Staged rows `[L, H, C, D]`, and int32 `[B]` each: `DeviceBatch` explains them."""

    key_rows: torch.Tensor
    value_rows: torch.Tensor
    slots: torch.Tensor
    before: torch.Tensor
    counts: torch.Tensor
    first_queries: torch.Tensor


class HeadRows(NamedTuple):
    """Row pages and the tables of heads. `elements` is `arena` in the model's dtype."""

    elements: torch.Tensor
    arena: torch.Tensor
    pages: torch.Tensor
    rows: torch.Tensor
    ends: torch.Tensor
    lengths: torch.Tensor
    scored: torch.Tensor


class HeadMetadata(NamedTuple):
    """Metadata pages, and which heads have metadata and log-weights."""

    pages: torch.Tensor
    present: torch.Tensor
    weighted: torch.Tensor
    positions: torch.Tensor
    log_weights: torch.Tensor


class BatchRows(NamedTuple):
    """Everything that a batch's queries attend to."""

    staged: StagedTokens
    heads: HeadRows
    metadata: HeadMetadata


class Partials(NamedTuple):
    """Partial results, one for each slice and head that it touches, and what follows from them.

    Per query `maxima` and `sums` of the softmax and the weighted values `mixed`; `totals`: the
    logarithm of a head's complete sum; `logits` `[G, rows]`: those of a single token, saved for
    scored heads.
    """

    maxima: torch.Tensor
    sums: torch.Tensor
    mixed: torch.Tensor
    totals: torch.Tensor
    logits: torch.Tensor


class RowAttention(NamedTuple):
    """The probability that each row receives, and where a head's entries begin."""

    entries: torch.Tensor
    starts: torch.Tensor


class ModelNumbers(NamedTuple):
    """Numbers of the model. Logits are to base 2, and `scale` includes that; window 0 is none."""

    scale: float
    window: int
    layers: int
    heads: int


class AttentionForm(NamedTuple):
    """Constants of a compiled form.

    `slices`: how many the rows of a layer are cut into. `split`: half a tile is enough for all
    queries, and its other half has them again. Tiles have `block_m` queries and `block_n` rows.
    """

    pages: PageForm
    slices: int
    kv_heads: int
    group: int
    metadata_page_rows: int
    windowed: bool
    weighted: bool
    scored: bool
    single: bool
    split: bool
    size: int
    block_d: int
    block_m: int
    block_n: int

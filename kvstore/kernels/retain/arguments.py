"""Arguments of the retain kernel, grouped by meaning.

Triton specialises each integer of a tuple for the value 1 and for multiples of 16. Integers that
differ between launches are therefore parameters of their own. No field is called `values` or
`type`, because Triton's tuples have attributes of these names.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from kvstore.kernels.coded_rows import PageForm


class StagedTokens(NamedTuple):
    """Staged rows `[L, H, C, D]`, flags `[C]`, and int32 `[B]` each: see `DeviceBatch`."""

    key_rows: torch.Tensor
    value_rows: torch.Tensor
    flags: torch.Tensor
    slots: torch.Tensor
    before: torch.Tensor
    counts: torch.Tensor


class HeadRows(NamedTuple):
    """Row pages and the tables of heads. `elements` is `arena` in the model's dtype.

    `rows_after` are the rows that heads will hold: the decision, or what was decided before.
    """

    elements: torch.Tensor
    arena: torch.Tensor
    pages: torch.Tensor
    rows: torch.Tensor
    rows_after: torch.Tensor
    lengths: torch.Tensor
    rules: torch.Tensor
    kv_heads: torch.Tensor


class HeadMetadata(NamedTuple):
    """Metadata pages, and which heads have metadata."""

    pages: torch.Tensor
    present: torch.Tensor
    positions: torch.Tensor
    scores: torch.Tensor
    flags: torch.Tensor
    log_weights: torch.Tensor


class Decision(NamedTuple):
    """Entries of heads that may lose rows, from `starts` on; `moves` and `ranks` share memory."""

    starts: torch.Tensor
    row_attention: torch.Tensor
    stays: torch.Tensor
    moves: torch.Tensor
    ranks: torch.Tensor


class FreeQueue(NamedTuple):
    """A `FreePages`. Pages from `fence` on are returned by this launch and not yet to be taken."""

    ring: torch.Tensor
    capacity: int
    taken: torch.Tensor
    returned: torch.Tensor
    fence: torch.Tensor
    exhausted: torch.Tensor


class ModelNumbers(NamedTuple):
    """Layers of the model, and heads of a table's line."""

    layers: int
    heads: int


class RetainForm(NamedTuple):
    """Constants of a compiled form: which halves it runs, and its tiles.

    `decides`: it chooses rows. `applies`: it moves them. `takes`: it takes and returns pages.
    """

    pages: PageForm
    layers: int
    heads: int
    metadata_page_rows: int
    weighted: bool
    decides: bool
    applies: bool
    takes: bool
    size: int
    block_d: int
    block_h: int
    block_r: int
    block_k: int

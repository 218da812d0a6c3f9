"""Tensors of a batch that a CUDA graph steps, at constant addresses."""

from __future__ import annotations

import numpy as np
import torch

from kvstore.kernels.device_batch import DeviceBatch, DeviceScratch
from kvstore.kernels.row_pages import RowPages
from kvstore.pool.pages import PagePool
from kvstore.rule_table import rule_to_record, rule_words
from kvstore.rules import RetentionRule

# the rule of places without a sequence: it keeps no rows
EMPTY_RULE = rule_to_record(RetentionRule())


def empty_batch(
    pool: PagePool, row_pages: RowPages, places: int, chunk_tokens: int
) -> tuple[DeviceBatch, DeviceScratch]:
    """Allocate a batch of `places` empty places, each of which is fed one token per step.

    The retention chunks have `chunk_tokens` tokens. The scratch returns scores in every layer.
    """
    columns, tables, device = pool.storage.columns, pool.tables, row_pages.arena.device
    _, layers, heads, table_pages = tables.pages.shape
    staging_slots = places * chunk_tokens
    staged = pool.new_staged_rows(staging_slots)
    # every scored row has metadata, and every new row of a head has an entry
    entries = pool.metadata_pages * pool.page_rows + staging_slots * layers * heads
    line = min(places * heads * table_pages, pool.pages) * row_pages.page_rows

    def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    words = rule_words(EMPTY_RULE[None]).reshape(-1)
    rules = torch.from_numpy(np.tile(words, (places, layers, heads, 1)))
    batch = DeviceBatch(
        row_pages=row_pages,
        positions=columns.positions,
        scores=columns.scores,
        metadata_flags=columns.flags,
        log_weights=columns.log_weights,
        metadata_page_rows=columns.page_rows,
        kv_heads=torch.from_numpy(tables.kv_heads).to(device),
        pages=zeros(places, layers, heads, table_pages),
        metadata=zeros(places, layers, heads, table_pages),
        rows=zeros(places, layers, heads),
        has_metadata=zeros(places, layers, heads, dtype=torch.bool),
        weighted=zeros(places, layers, heads, dtype=torch.bool),
        rules=rules.to(device),
        lengths=zeros(places, dtype=torch.int64),
        ends=zeros(layers, places * heads),
        new_keys=staged.keys,
        new_values=staged.values,
        flags=zeros(staging_slots, dtype=torch.uint8),
        staging_slots=torch.arange(places, dtype=torch.int32, device=device) * chunk_tokens,
        before=zeros(places),
        counts=zeros(places) + 1,
        first_queries=torch.arange(places, dtype=torch.int32, device=device),
        most=1,
        single=True,
        row_bound=line,
        weighted_layers=(len(columns.log_weights) > 0,) * layers,
    )
    scratch = DeviceScratch(
        zeros(places, layers, heads, dtype=torch.int64),
        zeros(places, layers, heads, dtype=torch.bool),
        torch.zeros(entries, device=device),
        zeros(entries, dtype=torch.uint8),
        (True,) * layers,
    )
    return batch, scratch

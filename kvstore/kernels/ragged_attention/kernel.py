"""Ragged paged attention on a GPU, split over equal slices of rows.

After Flash-Decoding (Dao et al. 2023). The rows of all heads of a layer are numbered sequence by
sequence and head by head. Prefix sums of the heads' rows are found on the device. Each slice of
these rows is a program, whatever the heads' lengths, so that skew costs nothing and the host never
waits.

A slice writes a partial result for each head that it touches: a maximum, a sum and mixed values. A
second launch combines the partial results of a head and adds the rows that the step stages. A third
launch writes the probability that each row received. There are no atomics and sums have a fixed
order, so equal inputs give equal bits. The cut depends on the whole batch, so the last bits of a
sequence may differ between batches.

Bytes and operations are counted in README.md.
"""

from __future__ import annotations

import math

import torch
import triton

from kvstore.kernels.coded_rows import page_form
from kvstore.kernels.device_batch import DeviceBatch, DeviceScratch
from kvstore.kernels.paged_batch import PagedBatch
from kvstore.kernels.ragged_attention.arguments import (
    AttentionForm,
    BatchRows,
    HeadMetadata,
    HeadRows,
    ModelNumbers,
    Partials,
    QueryRows,
    RowAttention,
    StagedTokens,
)
from kvstore.kernels.ragged_attention.attend_slice import attend_slice
from kvstore.kernels.ragged_attention.combine import combine_partials
from kvstore.kernels.ragged_attention.row_attention import write_row_attention
from kvstore.kernels.step_scratch import StepScratch

_LOG2_E = math.log2(math.e)
# slices per multiprocessor: enough that the last ones to finish do not matter
_SLICES_PER_PROCESSOR = 8
_MAX_QUERY_TILE = 64
ROW_TILE = 64
# exact f32 products run outside the tensor cores, out of registers: small tiles
_ROW_TILE_F32 = 32
# two of them go to the page table's loads; the rest keep two tiles of rows on their way
_STAGES = 5
_WARPS = 4
# of a thread, so that three programs share a multiprocessor
_REGISTERS = 168


def attend(
    q: torch.Tensor,
    batch: PagedBatch,
    layer: int,
    scratch: StepScratch,
    scale: float,
    sliding_window: int | None,
) -> torch.Tensor:
    """Compute the attention that op.py defines."""
    heads = int(batch.tables.kv_heads[layer])
    return attend_on_device(
        q,
        batch.on_device,
        layer,
        scratch.on_device,
        kv_heads=heads,
        scale=scale,
        sliding_window=sliding_window,
    )


def attend_on_device(
    q: torch.Tensor,
    batch: DeviceBatch,
    layer: int,
    scratch: DeviceScratch,
    *,
    kv_heads: int,
    scale: float,
    sliding_window: int | None,
    slices: int = 0,
) -> torch.Tensor:
    """Compute op.py's attention for a batch on the device, without waiting for the device.

    The layer has `kv_heads` of the tables' H. Entries of scored heads are written, and later parts
    of a chunk add to them. `slices`: how many a layer's rows are cut into, 0 for what the device
    needs.
    """
    _, query_heads, size = q.shape
    group = query_heads // kv_heads
    queries, (sequences, layers, heads) = group * batch.most, batch.rows.shape
    tile = _tile_for(queries)
    tiles = triton.cdiv(queries, tile)
    slices = slices or slices_for(q.device, tiles)
    scored = scratch.scored_layers[layer]
    count = sequences * heads
    out = torch.empty_like(q)
    # a partial result per slice, and one more for every head that a cut runs through
    maxima, sums = torch.empty(2, slices + count, queries, device=q.device).unbind()
    saved = batch.row_bound if scored and batch.single else 0
    shared = (
        QueryRows(q, *q.stride()),
        _batch_rows(batch, scratch),
        Partials(
            maxima,
            sums,
            torch.empty(slices + count, queries, size, device=q.device),
            torch.empty(count, queries, device=q.device),
            torch.empty(group, saved, device=q.device),
        ),
        ModelNumbers(scale * _LOG2_E, sliding_window or 0, layers, heads),
        layer,
        count,
        queries,
        batch.new_keys.shape[2],
        batch.pages.shape[3],
        batch.metadata.shape[3],
    )
    form = AttentionForm(
        pages=page_form(batch.row_pages.page_layout),
        slices=slices,
        kv_heads=kv_heads,
        group=group,
        metadata_page_rows=batch.metadata_page_rows,
        windowed=sliding_window is not None,
        weighted=batch.weighted_layers[layer],
        scored=scored,
        single=batch.single,
        split=2 * queries <= tile,
        size=size,
        block_d=max(16, triton.next_power_of_2(size)),
        block_m=tile,
        block_n=_row_tile(q.dtype, batch.row_pages.page_rows),
    )
    # more queries and metadata take the registers that they need
    bounded = not form.windowed and not form.weighted and tile == 16
    attend_slice[(slices, tiles)](
        *shared,
        FORM=form,
        num_warps=_WARPS,
        num_stages=_STAGES,
        maxnreg=_REGISTERS if bounded else None,
    )
    # the split is a matter of the slices alone
    form = form._replace(split=False)
    combine_partials[(count, tiles)](
        QueryRows(out, *out.stride()), *shared, FORM=form, num_warps=_WARPS, num_stages=2
    )
    if scored:
        write_row_attention[(slices + count,)](
            RowAttention(scratch.row_attention, scratch.starts),
            *shared,
            FORM=form,
            num_warps=_WARPS,
            num_stages=2,
        )
    return out


def _batch_rows(batch: DeviceBatch, scratch: DeviceScratch) -> BatchRows:
    staged = StagedTokens(
        batch.new_keys,
        batch.new_values,
        batch.staging_slots,
        batch.before,
        batch.counts,
        batch.first_queries,
    )
    heads = HeadRows(
        batch.row_pages.arena.view(batch.row_pages.layout.dtype),
        batch.row_pages.arena,
        batch.pages,
        batch.rows,
        batch.ends,
        batch.lengths,
        scratch.scored,
    )
    metadata = HeadMetadata(
        batch.metadata, batch.has_metadata, batch.weighted, batch.positions, batch.log_weights
    )
    return BatchRows(staged, heads, metadata)


def slices_for(device: torch.device, query_tiles: int) -> int:
    """Return how many slices keep the device busy; each is run for every tile of queries."""
    if device.type != "cuda":
        return _SLICES_PER_PROCESSOR
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, _SLICES_PER_PROCESSOR * processors // query_tiles)


def _row_tile(dtype: torch.dtype, page_rows: int) -> int:
    """Rows of a tile: no more than a page has, but sixteen places at least, for products."""
    most = _ROW_TILE_F32 if dtype == torch.float32 else ROW_TILE
    return int(min(most, max(16, triton.next_power_of_2(page_rows))))


def _tile_for(queries: int) -> int:
    return int(min(_MAX_QUERY_TILE, max(16, triton.next_power_of_2(queries))))

"""Ragged paged attention on a GPU, split over equal chunks of rows.

After Flash-Decoding (Dao et al. 2023). The rows of all heads of a layer form one line, sequence by
sequence and head by head. Its prefix sums are found on the device, and each chunk of the line is a
program whatever the heads' lengths, so that skew costs nothing and the host never waits. A chunk
leaves a maximum, a sum and mixed values for each head that it touches (a *piece*); a second launch
joins a head's pieces and adds the rows that the step itself feeds; a third hands each row the
probability it received. No atomics and a fixed order of sums: equal inputs give equal bits. The cut
depends on the whole batch, so a sequence's last bits may differ between batches.

Bytes and operations are counted in README.md.
"""

from __future__ import annotations

import math

import torch
import triton

from kvstore.kernels.coded_rows import page_options
from kvstore.kernels.device_batch import DeviceBatch, DeviceScratch
from kvstore.kernels.paged_batch import PagedBatch, StepScratch
from kvstore.kernels.ragged_attention.chunk import attend_chunk
from kvstore.kernels.ragged_attention.hand_back import hand_back
from kvstore.kernels.ragged_attention.join import join_pieces

_LOG2_E = math.log2(math.e)
# chunks per multiprocessor: enough that the last ones to finish do not matter
_CHUNKS_PER_PROCESSOR = 8
_MAX_QUERY_TILE = 64
ROW_TILE = 64
# exact f32 products run outside the tensor cores, out of registers: small tiles
_ROW_TILE_F32 = 32
# two of them go to the page table's loads; the rest keep two tiles of rows on their way
_STAGES = 5
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
    """See op.py."""
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
    chunks: int = 0,
) -> torch.Tensor:
    """The same, of a batch that is on the device; nothing here waits for it.

    The layer has `kv_heads` of the tables' H. Scored entries are written, and added to by later
    pieces of a block. `chunks`: how often the line is cut, 0 for what the device needs.
    """
    _, query_heads, size = q.shape
    group = query_heads // kv_heads
    queries, (sequences, layers, heads) = group * batch.most, batch.rows.shape
    tile = _tile_for(queries)
    tiles = triton.cdiv(queries, tile)
    chunks = chunks or chunks_for(q.device, tiles)
    scored = scratch.scored_layers[layer]
    lines = sequences * heads
    out = torch.empty_like(q)
    # one piece per chunk, and one more for every head that a cut runs through
    maxima, sums = torch.empty(2, chunks + lines, queries, device=q.device).unbind()
    mixed = torch.empty(chunks + lines, queries, size, device=q.device)
    saved = batch.row_bound if scored and batch.single else 0
    elements = batch.store.arena.view(batch.store.coding.dtype)
    shared = (
        q,
        *q.stride(),
        batch.new_keys,
        batch.new_values,
        batch.cells,
        batch.before,
        batch.counts,
        batch.first_queries,
        batch.new_keys.shape[2],
        elements,
        batch.store.arena,
        batch.pages,
        batch.pages.shape[3],
        batch.marks,
        batch.marks.shape[3],
        batch.marked,
        batch.weighted,
        batch.positions,
        batch.log_weights,
        batch.lengths,
        batch.rows,
        batch.ends[layer],
        lines,
        layer,
        layers,
        heads,
        queries,
        scale * _LOG2_E,
        sliding_window or 0,
        maxima,
        sums,
        mixed,
        torch.empty(lines, queries, device=q.device),
        torch.empty(saved, group, device=q.device),
        scratch.scored,
    )
    options = page_options(batch.store.page_layout) | {
        "CHUNKS": chunks,
        "KV_HEADS": kv_heads,
        "GROUP": group,
        "MARK_ROWS": batch.metadata_page_rows,
        "WINDOWED": sliding_window is not None,
        "WEIGHTED": batch.weighted_layers[layer],
        "SCORED": scored,
        "SINGLE": batch.single,
        "D": size,
        "BLOCK_D": max(16, triton.next_power_of_2(size)),
        "BLOCK_M": tile,
        "BLOCK_N": _row_tile(q.dtype, batch.store.page_rows),
        "num_warps": 4,
    }
    split = 2 * queries <= tile
    # more queries and marks take what they need
    plain = not options["WINDOWED"] and not options["WEIGHTED"]
    attend_chunk[(chunks, tiles)](
        *shared,
        **options,
        SPLIT=split,
        num_stages=_STAGES,
        maxnreg=_REGISTERS if plain and tile == 16 else None,
    )
    join_pieces[(lines, tiles)](out, *out.stride(), *shared, **options, num_stages=2)
    if scored:
        hand_back[(chunks + lines,)](
            scratch.received, scratch.starts, *shared, **options, num_stages=2
        )
    return out


def chunks_for(device: torch.device, query_tiles: int) -> int:
    """How many chunks keep the device busy when each is run for every tile of queries."""
    if device.type != "cuda":
        return _CHUNKS_PER_PROCESSOR
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, _CHUNKS_PER_PROCESSOR * processors // query_tiles)


def _row_tile(dtype: torch.dtype, page_rows: int) -> int:
    """Rows of a tile: no more than a page has, but sixteen places at least, for products."""
    most = _ROW_TILE_F32 if dtype == torch.float32 else ROW_TILE
    return int(min(most, max(16, triton.next_power_of_2(page_rows))))


def _tile_for(queries: int) -> int:
    return int(min(_MAX_QUERY_TILE, max(16, triton.next_power_of_2(queries))))

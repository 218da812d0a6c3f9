"""Ragged paged attention on a GPU, split over equal chunks of rows.

After Flash-Decoding (Dao et al. 2023). The rows of all heads of a layer form one line, sequence by
sequence and head by head. Its prefix sums are found on the device, and each chunk of the line is a
program whatever the heads' lengths, so that skew costs nothing and the host never waits. A chunk
leaves a maximum, a sum and mixed values for each head that it touches (a *piece*); a second launch
joins a head's pieces and adds the rows that the step itself feeds; a third hands each row the
probability it received. No atomics and a fixed order of sums: equal inputs give equal bits. The cut
depends on the whole batch, so a sequence's last bits may differ between batches.

Per layer with R rows held in all, one fed token, 16-bit rows: bytes are `4 · R · D` (keys and
values once, whatever G is), 4 to 12 a row for the page table and marks, `8 · G · D` a piece, and
with scores `8 · G + 4` a row (logits out and in, the result). Operations are `3 · R · G · D`
multiply-adds (one product with the keys, two with the values, see `tiles.mix`), padded from G to 16
rows on the tensor cores. At G = 4 that is 3 multiply-adds a byte, or 12 as padded, where an H200
can do about a hundred: memory is the only limit. A block of m fed tokens does m times that
arithmetic on the same bytes, and the products are the limit from some tens of tokens on.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import triton
import triton.language as tl

from kvstore.kernels.flat_rows import flat_rows
from kvstore.kernels.ragged_attention.hand_back import hand_back
from kvstore.kernels.ragged_attention.tiles import (
    HIDDEN,
    chunk_rows,
    fed_logits,
    first_head,
    key_tile,
    marked_logits,
    mix,
    query_tile,
    value_tile,
)
from kvstore.kernels.tile_product import tile_product

_LOG2_E = math.log2(math.e)
# chunks per multiprocessor: enough that the last ones to finish do not matter
_CHUNKS_PER_PROCESSOR = 8
_MAX_QUERY_TILE = 64
_ROW_TILE = 64
# exact f32 products run outside the tensor cores, out of registers: small tiles
_ROW_TILE_F32 = 32
# two of them go to the page table's loads; the rest keep two tiles of rows on their way
_STAGES = 5
# pieces of a head that are read side by side
_JOINED = tl.constexpr(4)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class AttentionScratch:
    """What the launches of one layer leave each other; one for all layers, at fixed addresses.

    `maxima`, `sums` f32 `[C + B · H, G · m]`, `mixed` f32 `[C + B · H, G · m, D]` for C chunks;
    `totals` f32 `[B · H, G · m]`, each query's log-sum-exp to base 2; `logits` f32
    `[row_bound, G]`, used only to return probabilities of a single fed token: `row_bound` is at
    least the rows that a layer's heads hold together.
    """

    chunks: int
    maxima: torch.Tensor
    sums: torch.Tensor
    mixed: torch.Tensor
    totals: torch.Tensor
    logits: torch.Tensor

    @classmethod
    def of(
        cls,
        sequences: int,
        kv_heads: int,
        group: int,
        fed: int,
        head_size: int,
        device: torch.device,
        *,
        row_bound: int = 0,
        chunks: int | None = None,
    ) -> AttentionScratch:
        """Room for batches of that size; `row_bound` 0 where no probabilities are wanted."""
        chunks = chunks or chunks_for(device, triton.cdiv(group * fed, _tile_for(group * fed)))
        pieces, heads, queries = chunks + sequences * kv_heads, sequences * kv_heads, group * fed
        return cls(
            chunks,
            torch.empty(pieces, queries, device=device),
            torch.empty(pieces, queries, device=device),
            torch.empty(pieces, queries, head_size, device=device),
            torch.empty(heads, queries, device=device),
            torch.empty(row_bound if fed == 1 else 0, group, device=device),
        )


def chunks_for(device: torch.device, query_tiles: int) -> int:
    """How many chunks keep the device busy when each is run for every tile of queries."""
    if device.type != "cuda":
        return _CHUNKS_PER_PROCESSOR
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, _CHUNKS_PER_PROCESSOR * processors // query_tiles)


def _tile_for(queries: int) -> int:
    return int(min(_MAX_QUERY_TILE, max(16, triton.next_power_of_2(queries))))


def line_ends(rows: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Where each head's rows end in its layer's line, int32 `[L, B · H]`; once a step.

    `rows` int32 `[S, L, H]`, `slots` int32 `[B]`.
    """
    _, layers, heads = rows.shape
    ends = torch.empty(layers, slots.numel() * heads, dtype=torch.int32, device=rows.device)
    _line_ends[(layers,)](ends, rows, slots, layers, heads, ends.shape[1], BLOCK=1024)
    return ends


def attend(
    q: torch.Tensor,
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    cells: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    pages: torch.Tensor,
    rows: torch.Tensor,
    slots: torch.Tensor,
    ends: torch.Tensor,
    layer: int,
    scratch: AttentionScratch,
    *,
    kv_heads: int,
    page_rows: int,
    scale: float,
    sliding_window: int | None = None,
    lengths: torch.Tensor | None = None,
    marks: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
    log_weights: torch.Tensor | None = None,
    starts: torch.Tensor | None = None,
    scored: torch.Tensor | None = None,
    received: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend m fed tokens of each of B sequences to its held rows, and causally to themselves.

    `q` `[B, HQ, m, D]`, the G query heads of a KV head adjacent; the layer has `kv_heads` of the
    table's H. Held rows: `keys`, `values` `[N, D]` through `pages` int32 `[S, L, H, P]` and `rows`
    int32 `[S, L, H]`, for the sequences in `slots` int32 `[B]`; slot s of a head is flat row
    `pages[.., s // page_rows] · page_rows + s % page_rows`. Fed rows: `new_keys`, `new_values`
    `[L, H, C, D]`, those of a sequence in the m cells from `cells[b]` (int32) on.

    With `sliding_window` a query at position `lengths[b] + i` sees only rows closer than that;
    `positions` int32 `[M]` lie where `marks` int32 `[S, L, H, P]` says, and every head of the
    layer has mark pages. `log_weights` f32 `[M]` are added to the logits of heads that have mark
    pages; a first entry below 0 says that a head has none. With `received` f32, heads with
    `scored[b, layer, h]` (bool `[B, L, H]`) get the probability of each held row and then of each
    fed one, summed over queries and averaged over the G heads, from `starts[b, layer, h]` (int64)
    on. Returns `[B, HQ, m, D]` in the strides of `q`.
    """
    _, query_heads, fed, size = q.shape
    queries = query_heads // kv_heads * fed
    assert scratch.maxima.shape[1] == queries, "a scratch for this many queries"
    assert sliding_window is None or (lengths is not None and positions is not None)
    for part in (keys, values, new_keys, new_values):
        assert part.is_contiguous(), "rows lie one after another"
    out = torch.empty_like(q)
    nothing = rows
    shared = (
        q,
        *q.stride(),
        new_keys,
        new_values,
        cells,
        new_keys.shape[2],
        keys,
        values,
        pages,
        nothing if marks is None else marks,
        nothing if positions is None else positions,
        nothing if log_weights is None else log_weights,
        nothing if lengths is None else lengths,
        rows,
        slots,
        ends[layer],
        ends.shape[1],
        layer,
        rows.shape[1],
        rows.shape[2],
        pages.shape[3],
        fed,
        scale * _LOG2_E,
        sliding_window or 0,
        scratch.maxima,
        scratch.sums,
        scratch.mixed,
        scratch.totals,
        scratch.logits,
        nothing if scored is None else scored,
    )
    tile = _tile_for(queries)
    options = {
        "CHUNKS": scratch.chunks,
        "KV_HEADS": kv_heads,
        "GROUP": query_heads // kv_heads,
        "PAGE_ROWS": page_rows,
        "WINDOWED": sliding_window is not None,
        "WEIGHTED": log_weights is not None,
        "SCORED": received is not None,
        "D": size,
        "BLOCK_D": max(16, triton.next_power_of_2(size)),
        "BLOCK_M": tile,
        "BLOCK_N": _ROW_TILE_F32 if q.dtype == torch.float32 else _ROW_TILE,
        "num_warps": 4,
    }
    tiles = triton.cdiv(queries, tile)
    _attend_chunk[(scratch.chunks, tiles)](*shared, **options, num_stages=_STAGES)
    _join_pieces[(ends.shape[1], tiles)](out, *out.stride(), *shared, **options, num_stages=2)
    if received is not None:
        hand_back[(scratch.chunks + ends.shape[1],)](
            received, starts, *shared, **options, num_stages=2
        )
    return out


@triton.jit
def _line_ends(
    ends: tl.tensor,
    rows: tl.tensor,
    slots: tl.tensor,
    layers: int,
    heads: int,
    count: int,
    BLOCK: tl.constexpr,
) -> None:
    """Program (layer)."""
    layer = tl.program_id(0)
    before = 0
    for first in range(0, count, BLOCK):
        line = first + tl.arange(0, BLOCK)
        valid = line < count
        slot = tl.load(slots + line // heads, mask=valid, other=0)
        held = tl.load(rows + (slot * layers + layer) * heads + line % heads, mask=valid, other=0)
        tl.store(ends + layer * count + line, before + tl.cumsum(held, 0), mask=valid)
        before += tl.sum(held, 0)


# layers share their compiled form
@triton.jit(do_not_specialize=["layer"])
def _attend_chunk(
    q: tl.tensor,
    q_sequence: int,
    q_head: int,
    q_token: int,
    q_size: int,
    new_keys: tl.tensor,
    new_values: tl.tensor,
    cells: tl.tensor,
    cell_count: int,
    keys: tl.tensor,
    values: tl.tensor,
    pages: tl.tensor,
    marks: tl.tensor,
    positions: tl.tensor,
    log_weights: tl.tensor,
    lengths: tl.tensor,
    rows: tl.tensor,
    slots: tl.tensor,
    ends: tl.tensor,
    count: int,
    layer: int,
    layers: int,
    heads: int,
    table_pages: int,
    fed: int,
    scale: float,
    window: int,
    maxima: tl.tensor,
    sums: tl.tensor,
    mixed: tl.tensor,
    totals: tl.tensor,
    saved_logits: tl.tensor,
    scored: tl.tensor,
    CHUNKS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    PAGE_ROWS: tl.constexpr,
    WINDOWED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SCORED: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Program (chunk, query tile). Piece `chunk + head`: each later one is of a later of both."""
    chunk = tl.program_id(0)
    query = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    known = query < GROUP * fed
    size = tl.arange(0, BLOCK_D)
    share = chunk_rows(ends, count, CHUNKS, BLOCK_N)
    row = chunk * share
    last = tl.minimum(row + share, tl.load(ends + count - 1))
    head = 0
    if row < last:
        head = first_head(ends, count, row)
    while row < last:
        end = tl.load(ends + head)
        if end > row:
            b, h = head // heads, head % heads
            place = (tl.load(slots + b).to(tl.int64) * layers + layer) * heads + h
            begin = end - tl.load(rows + place)
            stop = tl.minimum(last, end)
            queries = query_tile(
                q, q_sequence, q_head, q_token, q_size, b, h, query, fed, GROUP, D, BLOCK_D
            )
            own = query % fed
            if WINDOWED:
                own += tl.load(lengths + b).to(tl.int32)
            wants_scores = False
            if SCORED:
                wants_scores = tl.load(scored + (b * layers + layer) * heads + h) != 0
            top = tl.full([BLOCK_M], HIDDEN, tl.float32)
            total = tl.zeros([BLOCK_M], tl.float32)
            result = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
            for at in range(row, stop, BLOCK_N):
                line = at + tl.arange(0, BLOCK_N)
                valid = line < stop
                slot = line - begin
                flat = flat_rows(pages + place * table_pages, slot, valid, PAGE_ROWS)
                logits = tile_product(queries, key_tile(keys, flat, valid, D, BLOCK_D)) * scale
                logits = marked_logits(
                    logits,
                    valid,
                    slot,
                    own,
                    marks + place * table_pages,
                    positions,
                    log_weights,
                    window,
                    WINDOWED,
                    WEIGHTED,
                    PAGE_ROWS,
                )
                if SCORED:
                    if (fed == 1) & wants_scores:
                        target = saved_logits + line[None, :].to(tl.int64) * GROUP + query[:, None]
                        tl.store(target, logits, mask=known[:, None] & valid[None, :])
                above = tl.maximum(top, tl.max(logits, 1))
                weights = tl.exp2(logits - above[:, None])
                fade = tl.exp2(top - above)
                total = total * fade + tl.sum(weights, 1)
                result *= fade[:, None]
                result += mix(weights, value_tile(values, flat, valid, D, BLOCK_D))
                top = above
            piece = (chunk + head).to(tl.int64) * GROUP * fed + query
            tl.store(maxima + piece, top, mask=known)
            tl.store(sums + piece, total, mask=known)
            wanted = known[:, None] & (size[None, :] < D)
            tl.store(mixed + piece[:, None] * D + size[None, :], result, mask=wanted)
            row = stop
        head += 1


# layers share their compiled form
@triton.jit(do_not_specialize=["layer"])
def _join_pieces(
    out: tl.tensor,
    out_sequence: int,
    out_head: int,
    out_token: int,
    out_size: int,
    q: tl.tensor,
    q_sequence: int,
    q_head: int,
    q_token: int,
    q_size: int,
    new_keys: tl.tensor,
    new_values: tl.tensor,
    cells: tl.tensor,
    cell_count: int,
    keys: tl.tensor,
    values: tl.tensor,
    pages: tl.tensor,
    marks: tl.tensor,
    positions: tl.tensor,
    log_weights: tl.tensor,
    lengths: tl.tensor,
    rows: tl.tensor,
    slots: tl.tensor,
    ends: tl.tensor,
    count: int,
    layer: int,
    layers: int,
    heads: int,
    table_pages: int,
    fed: int,
    scale: float,
    window: int,
    maxima: tl.tensor,
    sums: tl.tensor,
    mixed: tl.tensor,
    totals: tl.tensor,
    saved_logits: tl.tensor,
    scored: tl.tensor,
    CHUNKS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    PAGE_ROWS: tl.constexpr,
    WINDOWED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SCORED: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Program (sequence and head, query tile): join the pieces, then the fed rows."""
    head = tl.program_id(0)
    b, h = head // heads, head % heads
    if h < KV_HEADS:
        query = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
        known = query < GROUP * fed
        size = tl.arange(0, BLOCK_D)
        wanted = known[:, None] & (size[None, :] < D)
        share = chunk_rows(ends, count, CHUNKS, BLOCK_N)
        end = tl.load(ends + head)
        held = tl.load(rows + (tl.load(slots + b).to(tl.int64) * layers + layer) * heads + h)
        first = (end - held) // share
        pieces = tl.where(held > 0, (end - 1) // share - first + 1, 0)
        top = tl.full([BLOCK_M], HIDDEN, tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        result = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for number in range(0, pieces, _JOINED):
            for further in tl.static_range(_JOINED):
                # beyond the last piece no query has anything
                there = query < tl.where(pieces > number + further, GROUP * fed, 0)
                piece = (first + head + number + further).to(tl.int64) * GROUP * fed + query
                their_top = tl.load(maxima + piece, mask=there, other=HIDDEN)
                their_total = tl.load(sums + piece, mask=there, other=0.0)
                theirs = tl.load(
                    mixed + piece[:, None] * D + size[None, :],
                    mask=there[:, None] & (size[None, :] < D),
                    other=0.0,
                )
                above = tl.maximum(top, their_top)
                fade, rise = tl.exp2(top - above), tl.exp2(their_top - above)
                total = total * fade + their_total * rise
                result = result * fade[:, None] + theirs * rise[:, None]
                top = above
        queries = query_tile(
            q, q_sequence, q_head, q_token, q_size, b, h, query, fed, GROUP, D, BLOCK_D
        )
        cell = (layer * heads + h).to(tl.int64) * cell_count + tl.load(cells + b)
        for token in range(0, fed, BLOCK_N):
            other = token + tl.arange(0, BLOCK_N)
            keys_of_fed = key_tile(new_keys, cell + other, other < fed, D, BLOCK_D)
            logits = tile_product(queries, keys_of_fed) * scale
            logits = fed_logits(logits, query % fed, other, fed, window)
            above = tl.maximum(top, tl.max(logits, 1))
            weights = tl.exp2(logits - above[:, None])
            fade = tl.exp2(top - above)
            total = total * fade + tl.sum(weights, 1)
            result *= fade[:, None]
            result += mix(weights, value_tile(new_values, cell + other, other < fed, D, BLOCK_D))
            top = above
        target = out + b.to(tl.int64) * out_sequence + size[None, :] * out_size
        target += (h * GROUP + query // fed)[:, None] * out_head
        target += (query % fed)[:, None] * out_token
        tl.store(target, (result / total[:, None]).to(out.dtype.element_ty), mask=wanted)
        if SCORED:
            tl.store(totals + head * GROUP * fed + query, top + tl.log2(total), mask=known)

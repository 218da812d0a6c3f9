"""Fused ragged attention for one fed token per sequence, straight from the pages, f32 on CPU.

The rows of all sequences and heads of a layer form one line that is cut into equal parts, one per
thread, whatever the heads' lengths; the parts of a head are joined afterwards by their maxima and
sums (Flash-Decoding, Dao et al. 2023). The G query heads of a KV head go over a tile of rows while
it lies in the first-level cache, so that a row is read from memory once. Coded rows are decoded
into such a tile, once for all G, and nowhere else.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from numba import prange

from kvstore.kernels.head_tables import HeadTables
from kvstore.kernels.host_arrays import (
    EntryArrays,
    MetadataArrays,
    RowArrays,
    TokenArrays,
)
from kvstore.kernels.host_batch import CODECS
from kvstore.kernels.paged_batch import PagedBatch
from kvstore.kernels.prefetch import LINE_BYTES, prefetch
from kvstore.kernels.row_pages import SCALE_WORD_BYTES
from kvstore.kernels.step_scratch import StepScratch
from kvstore.kernels.threads import ONLY_PRANGE, match_torch_threads
from kvstore.row_codecs import ElementCodec

# kernels of one file: numba's cache on disk sees no change in another's functions.
# arrays inside them; numba has no static types to offer
_Array = Any

# keys and values of 64 rows of 64 floats fill a first-level cache of 32 KiB
_TILE_ROWS = 64
# rows that are worth waking a thread for
_THREAD_ROWS = 2048
# logits no query reaches; finite, so that differences of two are defined
_HIDDEN = np.float32(-1e30)
_LOG2_E = np.float32(math.log2(math.e))
# NaN is garbage whatever is done with it; infinities keep their meaning
_FAST = {"reassoc", "contract", "arcp", "nsz", "nnan"}

# 2^f on [−1/2, 1/2] by a polynomial, relative error 2e-9 before f32 rounding
_C0, _C1, _C2, _C3 = map(np.float32, (1.0, 0.6931472056, 0.2402264661, 0.0555032900))
_C4, _C5, _C6 = map(np.float32, (0.0096185195, 0.0013399860, 0.0001533758))
_MODEL = CODECS.index(ElementCodec.MODEL)
_FP8, _INT8 = CODECS.index(ElementCodec.FP8), CODECS.index(ElementCodec.INT8)
# e4m3's bits at the place of float32's mean an exponent that is 120 too small
_FP8_SHIFT = np.float32(2.0**120)
# below this exponent a power counts as 0
_LEAST_EXPONENT = np.float32(-127.0)


def attend(
    q: torch.Tensor,
    batch: PagedBatch,
    layer: int,
    scratch: StepScratch,
    scale: float,
    sliding_window: int | None,
) -> torch.Tensor:
    """Compute op.py's attention where every sequence feeds one token."""
    out = np.empty(q.shape, np.float32)
    host, scored = batch.on_host, scratch.scored_layers[layer]
    group = q.shape[1] // host.kv_heads[layer]
    _attend(
        q.contiguous().numpy(),
        host.rows,
        host.metadata,
        host.tables,
        host.tokens,
        layer,
        scratch.on_host,
        host.working(2 * group if scored else 0),
        np.float32(scale * _LOG2_E),
        sliding_window or 0,
        match_torch_threads(1 + host.held[layer] // _THREAD_ROWS),
        out,
    )
    return torch.from_numpy(out)


class _Head(NamedTuple):
    """A head's `pages` and `metadata` pages. Rows of a position below `oldest` are hidden."""

    pages: _Array
    metadata: _Array
    has_metadata: bool
    weighted: bool
    oldest: int


class _Partials(NamedTuple):
    """Attention over a part of a head's rows: `maxima`, `sums` f32 `[G]`, `mixed` f32 `[G, D]`.

    For several parts of several heads each array has one more axis, the first.
    """

    maxima: _Array
    sums: _Array
    mixed: _Array


class _RowWeights(NamedTuple):
    """The `weights` f32 `[G, R]` of rows, relative to the maxima `tops` f32 `[G, R]`.

    The maxima are those at the first row of each tile. Without rows if no head is scored.
    """

    weights: _Array
    tops: _Array


@numba.njit(parallel=ONLY_PRANGE, fastmath=_FAST, cache=True, nogil=True)
def _attend(
    q: _Array,
    stored: RowArrays,
    metadata: MetadataArrays,
    tables: HeadTables,
    tokens: TokenArrays,
    layer: int,
    entries: EntryArrays,
    working: _Array,
    scale: float,
    window: int,
    parts: int,
    out: _Array,
) -> None:
    """Logits are in units of log 2 throughout; `scale` brings them there.

    `working` f32 `[2 · G, R]` is the memory of the rows' weights.
    """
    sequences, query_heads, size = q.shape
    heads = tables.kv_heads[layer]
    group = query_heads // heads
    queries = q.reshape(sequences * heads, group, size)
    slots, staging_slots = tokens.slots, tokens.staging_slots
    counts = np.empty(sequences * heads, np.int64)
    for head in range(sequences * heads):
        counts[head] = tables.rows[slots[head // heads], layer, head % heads]
    ends = np.cumsum(counts)
    held = ends[-1]
    share = max(1, -(-held // parts))
    # part p's piece of head s is number p + s: each later piece is of a later part or head
    maxima = np.empty((parts + len(ends), group), np.float32)
    sums = np.empty((parts + len(ends), group), np.float32)
    mixed = np.empty((parts + len(ends), group, size), np.float32)
    row_weights = _RowWeights(working[:group], working[group:])
    totals = np.empty((len(ends), group), np.float32)
    shares = np.empty(len(ends), np.float32)
    scored, starts = entries.scored, entries.starts
    for part in prange(parts):
        row, last = part * share, min(held, (part + 1) * share)
        head = np.searchsorted(ends, row, side="right")
        while row < last:
            b, h = head // heads, head % heads
            s = slots[b]
            begin = ends[head] - counts[head]
            stop = min(last, ends[head])
            piece = part + head
            _attend_piece(
                queries[head],
                stored,
                metadata,
                _Head(
                    tables.pages[s, layer, h],
                    tables.metadata[s, layer, h],
                    tables.has_metadata[s, layer, h],
                    tables.weighted[s, layer, h],
                    tables.lengths[s] - window + 1 if window else -1,
                ),
                row - begin,
                stop - begin,
                _Partials(maxima[piece], sums[piece], mixed[piece]),
                row_weights,
                begin,
                scored[b, layer, h],
                scale,
            )
            if stop - row == counts[head]:
                _join(
                    queries[head],
                    tokens.keys[layer, h, staging_slots[b]],
                    tokens.values[layer, h, staging_slots[b]],
                    scale,
                    _Partials(
                        maxima[piece : piece + 1], sums[piece : piece + 1], mixed[piece : piece + 1]
                    ),
                    totals[head],
                    shares[head : head + 1],
                    out[b, h * group : (h + 1) * group],
                )
                if scored[b, layer, h]:
                    # while the weights are still near
                    start = starts[b, layer, h]
                    _shares(row_weights, row, stop, totals[head], entries.row_attention, start)
            row = stop
            head += 1
    cut = 0
    for head in range(len(ends)):
        b, h = head // heads, head % heads
        pieces = _pieces(ends[head], counts[head], share)
        if pieces != 1:
            first = (ends[head] - counts[head]) // share + head
            stop = first + pieces
            _join(
                queries[head],
                tokens.keys[layer, h, staging_slots[b]],
                tokens.values[layer, h, staging_slots[b]],
                scale,
                _Partials(maxima[first:stop], sums[first:stop], mixed[first:stop]),
                totals[head],
                shares[head : head + 1],
                out[b, h * group : (h + 1) * group],
            )
        if scored[b, layer, h]:
            entries.row_attention[starts[b, layer, h] + counts[head]] = shares[head]
            cut += counts[head] if pieces > 1 else 0
    # few rows are not worth waking the threads again
    if cut > _THREAD_ROWS:
        for part in prange(parts):
            _cut_shares(part, share, ends, counts, layer, entries, row_weights, totals)
    elif cut > 0:
        for part in range(parts):
            _cut_shares(part, share, ends, counts, layer, entries, row_weights, totals)


@numba.njit(cache=True, nogil=True)
def _pieces(end: int, rows: int, share: int) -> int:
    """Return how many parts contain a head's rows, which end before `end`."""
    return (end - 1) // share - (end - rows) // share + 1 if rows > 0 else 0


@numba.njit(fastmath=_FAST, cache=True, nogil=True)
def _attend_piece(
    queries: _Array,
    stored: RowArrays,
    metadata: MetadataArrays,
    head: _Head,
    first: int,
    last: int,
    partials: _Partials,
    row_weights: _RowWeights,
    at: int,
    scored: bool,
    scale: float,
) -> None:
    """Slots `first` to `last` − 1 of a head: running maximum, sum and weighted values per query."""
    arena, floats, page_rows = stored.arena, stored.floats, stored.page_rows
    key_places, value_places = stored.key_places, stored.value_places
    pages, oldest = head.pages, head.oldest
    adjusted = head.weighted or oldest >= 0
    maxima, sums, mixed = partials.maxima, partials.sums, partials.mixed
    group, size = queries.shape
    tile = np.empty((group, _TILE_ROWS), np.float32)
    # decoded rows of one run, keys and then values
    key_bytes, key_page, key_first = key_places[1], key_places[2], key_places[3]
    value_bytes, value_page, value_first = value_places[1], value_places[2], value_places[3]
    coded = key_places[0] != _MODEL or value_places[0] != _MODEL
    decoded = np.empty((_TILE_ROWS if coded else 0, size), np.float32)
    bits = np.empty(size, np.int32)
    exponents = np.empty(_TILE_ROWS, np.int32)
    powers = exponents.view(np.float32)
    maxima[:] = _HIDDEN
    sums[:] = np.float32(0.0)
    mixed[:] = np.float32(0.0)
    for slot in range(first, last, _TILE_ROWS):
        count = min(_TILE_ROWS, last - slot)
        done = 0
        while done < count:
            run, page, offset = _run(pages, page_rows, slot + done, count - done)
            first_mark = 0
            if head.has_metadata and adjusted:
                run, mark_page, mark_offset = _run(
                    head.metadata, metadata.page_rows, slot + done, run
                )
                first_mark = mark_page * metadata.page_rows + mark_offset
            byte = page * key_page + key_first + offset * key_bytes
            ahead = page * value_page + value_first + offset * value_bytes
            many = run * value_bytes
            if coded:
                _decode(arena, page, offset, key_places, run, bits, decoded)
                _products(queries, decoded, 0, run, tile, done, scale, arena, ahead, many)
            else:
                first_row = byte // key_bytes
                _products(queries, floats, first_row, run, tile, done, scale, arena, ahead, many)
            if adjusted:
                hidden = run if head.has_metadata else min(run, oldest - slot - done)
                _adjust(tile, done, hidden, metadata, first_mark, head)
            done += run
        _softmax_tile(tile, count, exponents, powers, maxima, sums, mixed)
        if scored:
            row_weights.tops[:, at + slot] = maxima
            _copy(tile, row_weights.weights[:, at + slot : at + slot + count])
        done = 0
        while done < count:
            run, page, offset = _run(pages, page_rows, slot + done, count - done)
            byte = page * value_page + value_first + offset * value_bytes
            if coded:
                _decode(arena, page, offset, value_places, run, bits, decoded)
            ahead, many = 0, 0
            if slot + _TILE_ROWS + done < last:
                next_slot = slot + _TILE_ROWS + done
                many, page, offset = _run(pages, page_rows, next_slot, min(last - next_slot, run))
                ahead = page * key_page + key_first + offset * key_bytes
                many *= key_bytes
            if coded:
                _mix(tile, done, decoded, 0, run, mixed, arena, ahead, many)
            else:
                _mix(tile, done, floats, byte // value_bytes, run, mixed, arena, ahead, many)
            done += run


@numba.njit(fastmath=_FAST, cache=True, nogil=True)
def _adjust(
    tile: _Array,
    at: int,
    run: int,
    metadata: MetadataArrays,
    mark: int,
    head: _Head,
) -> None:
    """Add log-weights to the logits of `run` rows, and hide the rows that are too old.

    Without metadata a slot is a position, and `run` counts just the rows that are too old.
    """
    for r in range(run):
        if head.weighted:
            tile[:, at + r] += metadata.log_weights[mark + r] * _LOG2_E
        if not head.has_metadata or metadata.positions[mark + r] < head.oldest:
            tile[:, at + r] = _HIDDEN


@numba.njit(cache=True, nogil=True)
def _run(pages: _Array, page_rows: int, slot: int, most: int) -> tuple[int, int, int]:
    """Return how many rows from `slot` on are in its page, `most` at most; the page; the row."""
    offset = slot % page_rows
    page: int = pages[slot // page_rows]
    return min(page_rows - offset, most), page, offset


@numba.njit(fastmath=_FAST, cache=True, nogil=True)
def _decode(
    arena: _Array,
    page: int,
    offset: int,
    places: _Array,
    run: int,
    bits: _Array,
    decoded: _Array,
) -> None:
    """`run` rows of a page from `offset` on, as floats `[n, D]`; see codecs/layout.py.

    `bits` int32 `[D]` is working memory. Unsigned places are never taken to be from the end, and
    only so does the compiler make vectors of the loops.
    """
    words = bits.view(np.float32)
    size = np.uint64(decoded.shape[1])
    half = (size + np.uint64(1)) // np.uint64(2)
    codec, width, page_bytes = places[0], places[1], places[2]
    first = page * page_bytes + places[3] + offset * width
    scales = page * page_bytes + places[4] + offset * SCALE_WORD_BYTES
    for r in range(run):
        at = np.uint64(first + r * width)
        if codec == _MODEL:
            for d in range(size):
                byte = at + np.uint64(4) * d
                bits[d] = (
                    np.int32(arena[byte])
                    | (np.int32(arena[byte + np.uint64(1)]) << 8)
                    | (np.int32(arena[byte + np.uint64(2)]) << 16)
                    | (np.int32(arena[byte + np.uint64(3)]) << 24)
                )
            for d in range(size):
                decoded[r, d] = words[d]
            continue
        word = np.uint64(scales + r * SCALE_WORD_BYTES)
        scale = _bfloat16(arena, word, bits)
        if codec == _INT8:
            for d in range(size):
                # the sign is the uppermost bit
                decoded[r, d] = np.float32((np.int32(arena[at + d]) ^ 128) - 128) * scale
        elif codec == _FP8:
            factor = scale * _FP8_SHIFT
            for d in range(size):
                code = np.int32(arena[at + d])
                bits[d] = ((code & 128) << 24) | ((code & 127) << 20)
            for d in range(size):
                decoded[r, d] = words[d] * factor
        else:
            lowest = _bfloat16(arena, word + np.uint64(2), bits)
            for d in range(half):
                decoded[r, d] = np.float32(arena[at + d] & 15) * scale + lowest
            for d in range(size - half):
                decoded[r, half + d] = np.float32(arena[at + d] >> 4) * scale + lowest


@numba.njit(cache=True, nogil=True)
def _bfloat16(arena: _Array, at: int, bits: _Array) -> np.float32:
    after = at + np.uint64(1)
    bits[0] = np.int32((np.int32(arena[at]) << 16) | (np.int32(arena[after]) << 24))
    scale: np.float32 = bits.view(np.float32)[0]
    return scale


@numba.njit(cache=True, nogil=True)
def _fetched_each(many: int, times: int) -> int:
    """Return the bytes, whole cache lines, of each of so many prefetches of `many` bytes in all."""
    return LINE_BYTES * -(-many // (LINE_BYTES * max(1, times)))


@numba.njit(cache=True, nogil=True)
def _copy(tile: _Array, out: _Array) -> None:
    for g in range(out.shape[0]):
        for r in range(out.shape[1]):
            out[g, r] = tile[g, r]


@numba.njit(fastmath=_FAST, cache=True, nogil=True)
def _products(
    queries: _Array,
    keys: _Array,
    row: int,
    run: int,
    tile: _Array,
    at: int,
    scale: float,
    arena: _Array,
    ahead: int,
    many: int,
) -> None:
    """Scaled products of `queries [G, D]` and `run` keys from `row` on, to `tile[:, at ...]`.

    Meanwhile `many` bytes of the arena from `ahead` on are fetched, a few at a time: pages lie
    anywhere, so that the processor guesses none of them, and waits if all are asked for at once.
    """
    group, size = queries.shape
    fours = run - run % 4
    end, each = ahead + many, _fetched_each(many, group * (fours // 4))
    for g in range(group):
        for n in range(0, fours, 4):
            for byte in range(ahead, min(ahead + each, end), LINE_BYTES):
                prefetch(arena, byte)
            ahead += each
            r = row + n
            s0 = s1 = s2 = s3 = np.float32(0.0)
            for d in range(size):
                s0 += queries[g, d] * keys[r, d]
                s1 += queries[g, d] * keys[r + 1, d]
                s2 += queries[g, d] * keys[r + 2, d]
                s3 += queries[g, d] * keys[r + 3, d]
            tile[g, at + n] = s0 * scale
            tile[g, at + n + 1] = s1 * scale
            tile[g, at + n + 2] = s2 * scale
            tile[g, at + n + 3] = s3 * scale
        for n in range(fours, run):
            total = np.float32(0.0)
            for d in range(size):
                total += queries[g, d] * keys[row + n, d]
            tile[g, at + n] = total * scale


@numba.njit(fastmath=_FAST, cache=True, nogil=True)
def _dot(a: _Array, b: _Array) -> np.float32:
    total = np.float32(0.0)
    for d in range(a.shape[0]):
        total += a[d] * b[d]
    return total


@numba.njit(fastmath=_FAST, cache=True, nogil=True)
def _softmax_tile(
    tile: _Array,
    count: int,
    exponents: _Array,
    powers: _Array,
    maxima: _Array,
    sums: _Array,
    mixed: _Array,
) -> None:
    """Turn logits `[G, n]` into weights under the running maxima, and bring the sums under them."""
    for g in range(tile.shape[0]):
        top = maxima[g]
        for r in range(count):
            top = max(top, tile[g, r])
        if top > maxima[g]:
            shrink = np.exp2(maxima[g] - top)
            sums[g] *= shrink
            for d in range(mixed.shape[1]):
                mixed[g, d] *= shrink
            maxima[g] = top
        sums[g] += _exp2(tile, g, count, top, exponents, powers)


@numba.njit(fastmath=_FAST, cache=True, nogil=True)
def _exp2(
    tile: _Array, g: int, count: int, top: float, exponents: _Array, powers: _Array
) -> np.float32:
    """2^(x − top) of `tile[g, :count]`, at most `top`, in place; 0 below 2^−126. Their sum.

    Vectorised, unlike the library's. `powers` is the f32 view of int32 `exponents`.
    """
    for r in range(count):
        x = max(tile[g, r] - top, _LEAST_EXPONENT)
        whole = np.floor(x + np.float32(0.5))
        f = x - whole
        # a float's exponent bits alone are a power of two; exponent 0 makes it 0
        exponents[r] = (np.int32(whole) + 127) << 23
        power = _C5 + f * _C6
        power = _C4 + f * power
        power = _C3 + f * power
        power = _C2 + f * power
        power = _C1 + f * power
        tile[g, r] = _C0 + f * power
    total = np.float32(0.0)
    for r in range(count):
        weight = tile[g, r] * powers[r]
        tile[g, r] = weight
        total += weight
    return total


@numba.njit(fastmath=_FAST, cache=True, nogil=True)
def _mix(
    tile: _Array,
    at: int,
    values: _Array,
    row: int,
    run: int,
    mixed: _Array,
    arena: _Array,
    ahead: int,
    many: int,
) -> None:
    """Add `run` values from `row` on, weighted by `tile[:, at ...]`, to `mixed`, four at a time.

    Fetches meanwhile as `_products` does.
    """
    group, size = mixed.shape
    fours = run - run % 4
    end, each = ahead + many, _fetched_each(many, group * (fours // 4))
    for g in range(group):
        for n in range(0, fours, 4):
            for byte in range(ahead, min(ahead + each, end), LINE_BYTES):
                prefetch(arena, byte)
            ahead += each
            r = row + n
            w0, w1 = tile[g, at + n], tile[g, at + n + 1]
            w2, w3 = tile[g, at + n + 2], tile[g, at + n + 3]
            for d in range(size):
                mixed[g, d] += (w0 * values[r, d] + w1 * values[r + 1, d]) + (
                    w2 * values[r + 2, d] + w3 * values[r + 3, d]
                )
        for n in range(fours, run):
            weight = tile[g, at + n]
            for d in range(size):
                mixed[g, d] += weight * values[row + n, d]


@numba.njit(fastmath=_FAST, cache=True, nogil=True)
def _join(
    queries: _Array,
    new_key: _Array,
    new_value: _Array,
    scale: float,
    partials: _Partials,
    totals: _Array,
    share: _Array,
    out: _Array,
) -> None:
    """A head's pieces and the fed token's own row as one: out `[G, D]`, log-sums `totals [G]`.

    `share [1]` is the probability that the own row received, mean over the query heads.
    """
    group = queries.shape[0]
    maxima, sums, mixed = partials.maxima, partials.sums, partials.mixed
    share[0] = np.float32(0.0)
    for g in range(group):
        own = _dot(queries[g], new_key) * scale
        top = own
        for piece in range(len(maxima)):
            top = max(top, maxima[piece, g])
        own_weight = np.exp2(own - top)
        total = own_weight
        for piece in range(len(maxima)):
            weight = np.exp2(maxima[piece, g] - top)
            maxima[piece, g] = weight
            total += weight * sums[piece, g]
        for d in range(out.shape[1]):
            mean = own_weight * new_value[d]
            for piece in range(len(maxima)):
                mean += maxima[piece, g] * mixed[piece, g, d]
            out[g, d] = mean / total
        totals[g] = top + np.log2(total)
        share[0] += own_weight / total / np.float32(group)


@numba.njit(fastmath=_FAST, cache=True, nogil=True)
def _shares(
    row_weights: _RowWeights,
    first: int,
    last: int,
    totals: _Array,
    row_attention: _Array,
    at: int,
) -> None:
    """Write the probabilities of a piece's rows `first` to `last` − 1 to `row_attention[at ...]`.

    A row's probability is the mean over the G query heads.
    """
    weights, tops = row_weights.weights, row_weights.tops
    group = weights.shape[0]
    for row in range(first, last, _TILE_ROWS):
        count = min(_TILE_ROWS, last - row)
        some, to = weights[:, row : row + count], row_attention[at + row - first :]
        to[:count] = np.float32(0.0)
        for g in range(group):
            factor = np.exp2(tops[g, row] - totals[g]) / np.float32(group)
            for r in range(count):
                to[r] += some[g, r] * factor


@numba.njit(fastmath=_FAST, cache=True, nogil=True)
def _cut_shares(
    part: int,
    share: int,
    ends: _Array,
    counts: _Array,
    layer: int,
    entries: EntryArrays,
    row_weights: _RowWeights,
    totals: _Array,
) -> None:
    """Do the same for a part's rows of heads that other parts have rows of too."""
    heads = len(ends) // len(entries.scored)
    row, last = part * share, min(ends[-1], (part + 1) * share)
    head = np.searchsorted(ends, row, side="right")
    while row < last:
        b, h = head // heads, head % heads
        stop = min(last, ends[head])
        if entries.scored[b, layer, h] and stop - row < counts[head]:
            at = entries.starts[b, layer, h] + row - (ends[head] - counts[head])
            _shares(row_weights, row, stop, totals[head], entries.row_attention, at)
        row = stop
        head += 1

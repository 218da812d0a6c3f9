"""Fused ragged attention for one fed token per sequence, straight from the pages, f32 on CPU.

The rows of all sequences and heads of a layer form one line that is cut into equal parts, one per
thread, whatever the heads' lengths; the parts of a head are joined afterwards by their maxima and
sums (Flash-Decoding, Dao et al. 2023). The G query heads of a KV head go over a tile of rows while
it lies in the first-level cache, so that a row is read from memory once.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import torch
from numba import prange

from kvstore.kernels.paged_batch import PagedBatch, StepScratch
from kvstore.kernels.threads import ONLY_PRANGE, match_torch_threads

# arrays inside kernels; numba has no static types to offer
_Array = Any

# keys and values of 64 rows of 64 floats fill a first-level cache of 32 KiB
_TILE_ROWS = 64
# logits no query reaches; finite, so that differences of two are defined
_HIDDEN = np.float32(-1e30)
# NaN is garbage whatever is done with it; infinities keep their meaning
_FAST = {"reassoc", "contract", "arcp", "nsz", "nnan"}

# 2^f on [−1/2, 1/2] by a polynomial, relative error 2e-9 before f32 rounding
_C0, _C1, _C2, _C3 = map(np.float32, (1.0, 0.6931472056, 0.2402264661, 0.0555032900))
_C4, _C5, _C6 = map(np.float32, (0.0096185195, 0.0013399860, 0.0001533758))
# below this exponent a power counts as 0
_LEAST_EXPONENT = np.float32(-127.0)


def attend(
    q: torch.Tensor,
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    batch: PagedBatch,
    layer: int,
    scratch: StepScratch,
    scale: float,
    sliding_window: int | None,
) -> torch.Tensor:
    """See op.py; m is 1."""
    out = torch.empty(q.shape)
    _attend(
        # logits in units of log 2 from the start
        (q.float() * (scale * math.log2(math.e))).contiguous().numpy()[:, :, 0],
        new_keys.contiguous().numpy()[:, :, 0],
        new_values.contiguous().numpy()[:, :, 0],
        batch.keys.numpy(),
        batch.values.numpy(),
        batch.positions.numpy(),
        batch.page_rows,
        batch.pages,
        batch.rows,
        batch.lengths,
        layer,
        scratch.starts,
        scratch.scored,
        scratch.received,
        sliding_window or 0,
        match_torch_threads(),
        out.numpy()[:, :, 0],
    )
    return out.to(q.dtype)


@numba.njit(parallel=ONLY_PRANGE, fastmath=_FAST, cache=True, nogil=True)
def _attend(
    q: _Array,
    new_keys: _Array,
    new_values: _Array,
    keys: _Array,
    values: _Array,
    positions: _Array,
    page_rows: int,
    pages: _Array,
    rows: _Array,
    lengths: _Array,
    layer: int,
    starts: _Array,
    scored: _Array,
    received: _Array,
    window: int,
    parts: int,
    out: _Array,
) -> None:
    sequences, heads, size = new_keys.shape
    group = q.shape[1] // heads
    queries = q.reshape(sequences * heads, group, size)
    ends = np.cumsum(rows[:, layer, :heads].copy().reshape(-1))
    held = ends[-1]
    share = max(1, -(-held // parts))
    # part p's piece of head s is number p + s: each later piece is of a later part or head
    maxima = np.empty((parts + len(ends), group), np.float32)
    sums = np.empty((parts + len(ends), group), np.float32)
    mixed = np.empty((parts + len(ends), group, size), np.float32)
    any_scored = scored[:, layer, :heads].any()
    logits = np.empty((group, held if any_scored else 0), np.float32)
    for part in prange(parts):
        row, last = part * share, min(held, (part + 1) * share)
        head = np.searchsorted(ends, row, side="right")
        while row < last:
            b, h = head // heads, head % heads
            begin = ends[head] - rows[b, layer, h]
            stop = min(last, ends[head])
            oldest = lengths[b] - window + 1 if window else -1
            _attend_piece(
                queries[head],
                keys,
                values,
                positions,
                page_rows,
                pages[b, layer, h],
                row - begin,
                stop - begin,
                oldest,
                maxima[part + head],
                sums[part + head],
                mixed[part + head],
                logits[:, begin : ends[head]],
                scored[b, layer, h],
            )
            row = stop
            head += 1
    totals = np.empty((len(ends), group), np.float32)
    for head in range(len(ends)):
        b, h = head // heads, head % heads
        begin = ends[head] - rows[b, layer, h]
        first = begin // share
        pieces = (ends[head] - 1) // share - first + 1 if ends[head] > begin else 0
        some = slice(first + head, first + head + pieces)
        _join(
            queries[head],
            new_keys[b, h],
            new_values[b, h],
            maxima[some],
            sums[some],
            mixed[some],
            totals[head],
            out[b, h * group : (h + 1) * group],
        )
        if scored[b, layer, h]:
            own = starts[b, layer, h] + rows[b, layer, h]
            received[own] = _own_share(queries[head], new_keys[b, h], totals[head])
    if any_scored:
        for part in prange(parts):
            row, last = part * share, min(held, (part + 1) * share)
            head = np.searchsorted(ends, row, side="right")
            while row < last:
                b, h = head // heads, head % heads
                begin = ends[head] - rows[b, layer, h]
                stop = min(last, ends[head])
                if scored[b, layer, h]:
                    start = starts[b, layer, h] - begin
                    target = received[start + row : start + stop]
                    _shares(logits[:, row:stop], totals[head], target)
                row = stop
                head += 1


@numba.njit(fastmath=_FAST, cache=True, nogil=True)
def _attend_piece(
    queries: _Array,
    keys: _Array,
    values: _Array,
    positions: _Array,
    page_rows: int,
    pages: _Array,
    first: int,
    last: int,
    oldest: int,
    maxima: _Array,
    sums: _Array,
    mixed: _Array,
    logits: _Array,
    scored: bool,
) -> None:
    """Slots `first` to `last` − 1 of a head: running maximum, sum and weighted values per query."""
    group = queries.shape[0]
    tile = np.empty((group, _TILE_ROWS), np.float32)
    exponents = np.empty(_TILE_ROWS, np.int32)
    maxima[:] = _HIDDEN
    sums[:] = np.float32(0.0)
    mixed[:] = np.float32(0.0)
    while first < last:
        count = min(_TILE_ROWS, last - first)
        done = 0
        while done < count:
            page, row = (first + done) // page_rows, (first + done) % page_rows
            run = min(page_rows - row, count - done)
            row += pages[page] * page_rows
            _products(queries, keys[row : row + run], tile[:, done : done + run])
            if oldest >= 0:
                for r in range(run):
                    if positions[row + r] < oldest:
                        tile[:, done + r] = _HIDDEN
            done += run
        if scored:
            logits[:, first : first + count] = tile[:, :count]
        for g in range(group):
            _softmax_tile(tile[g, :count], exponents[:count], maxima, sums, mixed, g)
        done = 0
        while done < count:
            page, row = (first + done) // page_rows, (first + done) % page_rows
            run = min(page_rows - row, count - done)
            row += pages[page] * page_rows
            _mix(tile[:, done : done + run], values[row : row + run], mixed)
            done += run
        first += count


@numba.njit(fastmath=_FAST, cache=True, nogil=True)
def _products(queries: _Array, keys: _Array, out: _Array) -> None:
    """`queries [G, D]` times `keys [n, D]`, four rows at a time: out `[G, n]`."""
    group, size = queries.shape
    rows = keys.shape[0]
    fours = rows - rows % 4
    for g in range(group):
        query = queries[g]
        for r in range(0, fours, 4):
            k0, k1, k2, k3 = keys[r], keys[r + 1], keys[r + 2], keys[r + 3]
            s0 = s1 = s2 = s3 = np.float32(0.0)
            for d in range(size):
                s0 += query[d] * k0[d]
                s1 += query[d] * k1[d]
                s2 += query[d] * k2[d]
                s3 += query[d] * k3[d]
            out[g, r], out[g, r + 1], out[g, r + 2], out[g, r + 3] = s0, s1, s2, s3
        for r in range(fours, rows):
            out[g, r] = _dot(query, keys[r])


@numba.njit(fastmath=_FAST, cache=True, nogil=True)
def _dot(a: _Array, b: _Array) -> float:
    total = np.float32(0.0)
    for d in range(a.shape[0]):
        total += a[d] * b[d]
    return total


@numba.njit(fastmath=_FAST, cache=True, nogil=True)
def _softmax_tile(
    tile: _Array, exponents: _Array, maxima: _Array, sums: _Array, mixed: _Array, g: int
) -> None:
    """Turn logits `[n]` into weights under the running maximum, and bring the sums under it."""
    top = maxima[g]
    for r in range(tile.shape[0]):
        top = max(top, tile[r])
    if top > maxima[g]:
        shrink = np.exp2(maxima[g] - top)
        sums[g] *= shrink
        for d in range(mixed.shape[1]):
            mixed[g, d] *= shrink
        maxima[g] = top
    for r in range(tile.shape[0]):
        tile[r] -= top
    _exp2(tile, exponents)
    total = np.float32(0.0)
    for r in range(tile.shape[0]):
        total += tile[r]
    sums[g] += total


@numba.njit(fastmath=_FAST, cache=True, nogil=True)
def _exp2(x: _Array, exponents: _Array) -> None:
    """2^x of values at most 0, in place; 0 below 2^−126. Vectorised, unlike the library's."""
    for i in range(x.shape[0]):
        clipped = max(x[i], _LEAST_EXPONENT)
        whole = np.floor(clipped + np.float32(0.5))
        f = clipped - whole
        # a float's exponent bits alone are a power of two; exponent 0 makes it 0
        exponents[i] = (np.int32(whole) + 127) << 23
        power = _C5 + f * _C6
        power = _C4 + f * power
        power = _C3 + f * power
        power = _C2 + f * power
        power = _C1 + f * power
        x[i] = _C0 + f * power
    powers = exponents.view(np.float32)
    for i in range(x.shape[0]):
        x[i] *= powers[i]


@numba.njit(fastmath=_FAST, cache=True, nogil=True)
def _mix(weights: _Array, values: _Array, mixed: _Array) -> None:
    """Add `weights [G, n]` times `values [n, D]` to `mixed [G, D]`, four rows at a time."""
    rows, size = values.shape
    fours = rows - rows % 4
    for g in range(weights.shape[0]):
        target = mixed[g]
        for r in range(0, fours, 4):
            w0, w1, w2, w3 = weights[g, r], weights[g, r + 1], weights[g, r + 2], weights[g, r + 3]
            v0, v1, v2, v3 = values[r], values[r + 1], values[r + 2], values[r + 3]
            for d in range(size):
                target[d] += (w0 * v0[d] + w1 * v1[d]) + (w2 * v2[d] + w3 * v3[d])
        for r in range(fours, rows):
            weight, value = weights[g, r], values[r]
            for d in range(size):
                target[d] += weight * value[d]


@numba.njit(fastmath=_FAST, cache=True, nogil=True)
def _join(
    queries: _Array,
    new_key: _Array,
    new_value: _Array,
    maxima: _Array,
    sums: _Array,
    mixed: _Array,
    totals: _Array,
    out: _Array,
) -> None:
    """A head's pieces and the fed token's own row as one: out `[G, D]`, log-sums `totals [G]`."""
    pieces = maxima.shape[0]
    for g in range(queries.shape[0]):
        own = _dot(queries[g], new_key)
        top = own
        for piece in range(pieces):
            top = max(top, maxima[piece, g])
        weight = np.exp2(own - top)
        total = weight
        for d in range(out.shape[1]):
            out[g, d] = weight * new_value[d]
        for piece in range(pieces):
            weight = np.exp2(maxima[piece, g] - top)
            total += weight * sums[piece, g]
            for d in range(out.shape[1]):
                out[g, d] += weight * mixed[piece, g, d]
        for d in range(out.shape[1]):
            out[g, d] /= total
        totals[g] = top + np.log2(total)


@numba.njit(fastmath=_FAST, cache=True, nogil=True)
def _own_share(queries: _Array, new_key: _Array, totals: _Array) -> float:
    """The probability that the fed token's own row received, mean over the query heads."""
    share = np.float32(0.0)
    for g in range(queries.shape[0]):
        share += np.exp2(_dot(queries[g], new_key) - totals[g])
    return share / np.float32(queries.shape[0])


@numba.njit(fastmath=_FAST, cache=True, nogil=True)
def _shares(logits: _Array, totals: _Array, received: _Array) -> None:
    """Probabilities out of logits `[G, n]`, mean over the query heads."""
    group, rows = logits.shape
    power = np.empty(_TILE_ROWS, np.float32)
    exponents = np.empty(_TILE_ROWS, np.int32)
    part = np.float32(1.0) / np.float32(group)
    for first in range(0, rows, _TILE_ROWS):
        count = min(_TILE_ROWS, rows - first)
        received[first : first + count] = np.float32(0.0)
        for g in range(group):
            for r in range(count):
                power[r] = min(logits[g, first + r] - totals[g], np.float32(0.0))
            _exp2(power[:count], exponents[:count])
            for r in range(count):
                received[first + r] += power[r] * part

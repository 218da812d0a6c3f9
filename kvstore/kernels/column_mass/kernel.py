"""Column mass on a GPU. One program owns a tile of columns: no atomics, and equal bits each time.

Bytes and operations are counted in README.md.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from kvstore.kernels.tile_product import tile_product

_LOG2_E = math.log2(math.e)
# more than any position
_NEVER = 2**31 - 1
_LATEST = tl.constexpr(_NEVER)
# so many rows apart a thread has the same column's pairs of a product, and adds them alone
_LANES = tl.constexpr(8)


@dataclasses.dataclass(frozen=True, slots=True)
class Tiles:
    """Columns and query rows per tile, and how they are run."""

    columns: int
    rows: int
    warps: int
    stages: int


def tiles_for(head_size: int, dtype: torch.dtype) -> Tiles:
    """Tiles whose operands fit the shared memory and the registers of an SM.

    Exact f32 products run outside the tensor cores, out of registers: small tiles.
    """
    if dtype == torch.float32:
        return Tiles(32, 32, 4, 2)
    return Tiles(128, 64, 4, 3) if head_size <= 128 else Tiles(64, 64, 4, 2)


def column_mass(
    far: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    lse: torch.Tensor,
    positions: torch.Tensor,
    *,
    edges: Sequence[int],
    scale: float,
    sliding_window: int | None,
    value_norms: torch.Tensor | None,
) -> None:
    """Compute op.py's column mass with one copy to the device and no other synchronisation."""
    if not positions.numel():
        return
    q, k = _rows_contiguous(q), _rows_contiguous(k)
    tiles = tiles_for(q.shape[2], q.dtype)
    call = _Call(q, k, positions, edges, scale, sliding_window, tiles)
    offsets = call.offsets(lse)
    norms = None if value_norms is None else value_norms.float().contiguous()
    if norms is not None:
        call.renormalise(offsets, norms)
    call.add_to(far, offsets, norms)


def _rows_contiguous(rows: torch.Tensor) -> torch.Tensor:
    return rows if rows.stride(-1) == 1 else rows.contiguous()


class _Call:
    """Values that both launches share: row positions, tile bounds and edges on the device.

    Rows come in whole tiles. Those that fill the last one are where the last row is; an `offset` of
    infinity leaves them no mass.
    """

    def __init__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        positions: torch.Tensor,
        edges: Sequence[int],
        scale: float,
        sliding_window: int | None,
        tiles: Tiles,
    ) -> None:
        self._q, self._k, self._edges, self._tiles = q, k, len(edges), tiles
        self._window = _NEVER if sliding_window is None else sliding_window
        self._scale = scale * _LOG2_E
        starts = torch.arange(0, k.shape[1], tiles.columns)
        ends = (starts + (tiles.columns - 1)).clamp(max=_NEVER - self._window) + self._window
        parts = (
            torch.cat((positions, positions[-1:].expand(-positions.numel() % tiles.rows))),
            torch.searchsorted(positions, starts) // tiles.rows,
            (torch.searchsorted(positions, ends) + (tiles.rows - 1)) // tiles.rows,
            torch.tensor(edges),
        )
        joined = torch.cat(parts).to(torch.int32).to(q.device, non_blocking=True)
        self._positions, self._first, self._last, self._distances = torch.split(
            joined, [part.numel() for part in parts]
        )

    def offsets(self, lse: torch.Tensor) -> torch.Tensor:
        """Return the offset of each row's exponents, to base 2: f32 `[HQ, rows]`."""
        room = self._positions.numel() - lse.shape[1]
        return torch.nn.functional.pad(lse.float() * _LOG2_E, (0, room), value=math.inf)

    def renormalise(self, offsets: torch.Tensor, norms: torch.Tensor) -> None:
        """Make each row's `offsets` such that its mass, weighted by `norms`, sums to 1."""
        heads, rows = self._q.shape[:2]
        # a third tile of keys on its way would leave a multiprocessor room for one program alone
        options = self._options() | {"num_stages": 2}
        row_totals[(triton.cdiv(rows, self._tiles.rows), heads)](
            offsets, self._q, self._k, norms, self._positions, *self._sizes(), **options
        )

    def add_to(self, far: torch.Tensor, offsets: torch.Tensor, norms: torch.Tensor | None) -> None:
        """Add every column's mass by edge."""
        column_sums[(self._first.numel(), self._q.shape[0])](
            far,
            far.stride(0),
            far.stride(1),
            far.stride(2),
            offsets,
            self._q,
            self._k,
            offsets if norms is None else norms,
            self._positions,
            self._first,
            self._last,
            self._distances,
            *self._sizes(),
            EDGES=self._edges,
            BLOCK_E=triton.next_power_of_2(max(2, self._edges)),
            WEIGHTED=norms is not None,
            **self._options(),
        )

    def _sizes(self) -> tuple[int | float, ...]:
        q, k = self._q, self._k
        strides = q.stride(0), q.stride(1), k.stride(0), k.stride(1)
        return (
            *strides,
            q.shape[1],
            self._positions.numel(),
            k.shape[1],
            q.shape[0] // k.shape[0],
            self._scale,
            self._window,
        )

    def _options(self) -> dict[str, int]:
        tiles, size = self._tiles, self._q.shape[2]
        return {
            "D": size,
            "BLOCK_D": max(16, triton.next_power_of_2(size)),
            "BLOCK_N": tiles.columns,
            "BLOCK_M": tiles.rows,
            "num_warps": tiles.warps,
            "num_stages": tiles.stages,
        }


@triton.jit
def column_sums(
    far: tl.tensor,
    far_head: int,
    far_edge: int,
    far_column: int,
    offsets: tl.tensor,
    q: tl.tensor,
    k: tl.tensor,
    norms: tl.tensor,
    positions: tl.tensor,
    first_tiles: tl.tensor,
    last_tiles: tl.tensor,
    edges: tl.tensor,
    q_head: int,
    q_row: int,
    k_head: int,
    k_row: int,
    rows: int,
    padded: int,
    columns: int,
    group: int,
    scale: float,
    window: int,
    EDGES: tl.constexpr,
    BLOCK_E: tl.constexpr,
    WEIGHTED: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
) -> None:
    """Program (column tile, query head). A row's `offset` is what its exponents are relative to.

    From the last rows to the first their distance to a column shrinks, past one edge after another:
    what a column has received when an edge is passed is what it receives from beyond that edge.
    Between edges and within the window a tile needs neither masks nor sums of its own.
    """
    tile = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    begin = tile * BLOCK_N
    column = begin + tl.arange(0, BLOCK_N)
    exists = column < columns
    size = tl.arange(0, BLOCK_D)
    keys = tl.load(
        k + head // group * k_head + column[:, None].to(tl.int64) * k_row + size[None, :],
        mask=exists[:, None] & (size[None, :] < D),
        other=0.0,
    )
    number = tl.arange(0, BLOCK_E)
    distances = tl.load(edges + number, mask=number < EDGES, other=_LATEST)
    mass = tl.zeros([BLOCK_N, BLOCK_E], tl.float32)
    received = tl.zeros([BLOCK_N, _LANES], tl.float32)
    # edges up to `ahead` are not passed yet, and the next of the others is `behind`
    ahead, behind = tl.cast(_LATEST, tl.int32), 0
    last = tl.load(last_tiles + tile)
    place = tl.arange(0, BLOCK_M)
    in_tile = place[None, :] * q_row + size[:, None]
    for back in range(last - tl.load(first_tiles + tile)):
        first = (last - 1 - back) * BLOCK_M
        offset = tl.load(offsets + head * padded + first + place)
        queries = tl.load(
            q + head * q_head + first.to(tl.int64) * q_row + in_tile,
            mask=(first + place < rows)[None, :] & (size[:, None] < D),
            other=0.0,
        )
        exponents = tile_product(keys, queries) * scale - offset[None, :]
        nearest = tl.load(positions + first) - (begin + BLOCK_N - 1)
        farthest = tl.load(positions + first + BLOCK_M - 1) - begin
        mixed = (nearest < tl.maximum(ahead, 0)) | (farthest >= behind)
        if mixed:
            # columns that do not exist come after every position
            distance = tl.load(positions + first + place)[None, :] - column[:, None]
            seen = (distance >= 0) & (distance < window)
            exponents = tl.where(seen, exponents, float("-inf"))
        shares = tl.exp2(exponents)
        if mixed:
            passed = (distances > nearest) & (distances <= ahead)
            mass += tl.where(passed[None, :], tl.sum(received, 1)[:, None], 0.0)
            distance = tl.load(positions + first + place)[None, :] - column[:, None]
            for edge in range(EDGES):
                least = tl.load(edges + edge)
                # it belongs to some pairs of the tile and not to others
                if (least > nearest) & (least <= farthest):
                    part = tl.sum(tl.where(distance >= least, shares, 0.0), 1)
                    mass += tl.where(number[None, :] == edge, part[:, None], 0.0)
            ahead = tl.max(tl.where(distances <= nearest, distances, -1), 0)
            behind = tl.min(tl.where(distances > nearest, distances, window), 0)
            behind = tl.minimum(behind, window)
        received += tl.sum(tl.reshape(shares, (BLOCK_N, BLOCK_M // _LANES, _LANES)), 1)
    mass += tl.where((distances <= ahead)[None, :], tl.sum(received, 1)[:, None], 0.0)
    if WEIGHTED:
        norm = tl.load(norms + head // group * columns + column, mask=exists, other=0.0)
        mass *= norm[:, None]
    target = far + head * far_head + number[None, :] * far_edge + column[:, None] * far_column
    wanted = exists[:, None] & (number[None, :] < EDGES)
    tl.store(target, tl.load(target, mask=wanted, other=0.0) + mass, mask=wanted)


@triton.jit
def row_totals(
    offsets: tl.tensor,
    q: tl.tensor,
    k: tl.tensor,
    norms: tl.tensor,
    positions: tl.tensor,
    q_head: int,
    q_row: int,
    k_head: int,
    k_row: int,
    rows: int,
    padded: int,
    columns: int,
    group: int,
    scale: float,
    window: int,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
) -> None:
    """Program (row tile, query head): offsets grow by the logarithm of the rows' weighted mass."""
    first = tl.program_id(0) * BLOCK_M
    head = tl.program_id(1).to(tl.int64)
    row = first + tl.arange(0, BLOCK_M)
    valid = row < rows
    size = tl.arange(0, BLOCK_D)
    position = tl.load(positions + row, mask=valid, other=-1)
    offset = tl.load(offsets + head * padded + row, mask=valid, other=0.0)
    queries = tl.load(
        q + head * q_head + row[:, None].to(tl.int64) * q_row + size[None, :],
        mask=valid[:, None] & (size[None, :] < D),
        other=0.0,
    )
    earliest = tl.load(positions + first)
    latest = tl.load(positions + tl.minimum(first + BLOCK_M, rows) - 1)
    oldest = tl.maximum(earliest - window + 1, 0)
    total = tl.zeros([BLOCK_M, _LANES], tl.float32)
    place = tl.arange(0, BLOCK_N)
    in_tile = place[None, :] * k_row + size[:, None]
    for begin in range(oldest // BLOCK_N * BLOCK_N, latest + 1, BLOCK_N):
        column = begin + place
        exists = column < columns
        keys = tl.load(
            k + head // group * k_head + tl.cast(begin, tl.int64) * k_row + in_tile,
            mask=exists[None, :] & (size[:, None] < D),
            other=0.0,
        )
        norm = tl.load(norms + head // group * columns + column, mask=exists, other=0.0)
        exponents = tile_product(queries, keys) * scale - offset[:, None]
        # columns that do not exist come after every position
        if (begin + BLOCK_N - 1 > earliest) | (latest - begin >= window):
            distance = position[:, None] - column[None, :]
            seen = (distance >= 0) & (distance < window)
            exponents = tl.where(seen, exponents, float("-inf"))
        shares = tl.exp2(exponents)
        weighted = tl.reshape(shares * norm[None, :], (BLOCK_M, BLOCK_N // _LANES, _LANES))
        total += tl.sum(weighted, 1)
    # a row that sees only values of norm zero has nothing to share out, and no logarithm
    mass = tl.maximum(tl.sum(total, 1), 1e-30)
    tl.store(offsets + head * padded + row, offset + tl.log2(mass), mask=valid)

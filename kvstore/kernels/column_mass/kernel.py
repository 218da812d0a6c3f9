"""Column mass on a GPU. One program owns a tile of columns: no atomics, and equal bits each time.

Bytes and operations are counted in README.md.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kvstore.kernels.column_mass.input import ColumnMassInput
from kvstore.kernels.device_copies import to_device
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


class ColumnSums(NamedTuple):
    """The result `[HQ, E, T]` and its strides."""

    data: torch.Tensor
    head: int
    edge: int
    column: int


class RowsOfHeads(NamedTuple):
    """Queries and keys, and their strides of heads and rows."""

    q: torch.Tensor
    q_head: int
    q_row: int
    k: torch.Tensor
    k_head: int
    k_row: int


class EdgeTiles(NamedTuple):
    """The `first` row tile of each tile of columns, and the one after its `last`; the edges."""

    first: torch.Tensor
    last: torch.Tensor
    distances: torch.Tensor


class Sizes(NamedTuple):
    """Query rows, those rows padded to whole tiles, columns, and numbers of the layer."""

    rows: int
    padded: int
    columns: int
    group: int
    scale: float
    window: int


class EdgeForm(NamedTuple):
    """Constants of the compiled form that edges and norms decide."""

    edges: int
    block_e: int
    weighted: bool


class TileForm(NamedTuple):
    """Constants of the compiled form: the head size, and tiles' sizes."""

    size: int
    block_d: int
    columns: int
    rows: int


def tiles_for(head_size: int, dtype: torch.dtype) -> Tiles:
    """Tiles whose operands fit the shared memory and the registers of an SM.

    Exact f32 products run outside the tensor cores, out of registers: small tiles.
    """
    if dtype == torch.float32:
        return Tiles(32, 32, 4, 2)
    return Tiles(128, 64, 4, 3) if head_size <= 128 else Tiles(64, 64, 4, 2)


def column_mass(far: torch.Tensor, inputs: ColumnMassInput) -> None:
    """Compute op.py's column mass with one copy to the device and no other synchronisation."""
    if not inputs.positions.numel():
        return
    call = _Call(inputs, tiles_for(inputs.q.shape[2], inputs.q.dtype))
    offsets = call.offsets(inputs.lse)
    norms = None if inputs.value_norms is None else inputs.value_norms.float().contiguous()
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

    def __init__(self, inputs: ColumnMassInput, tiles: Tiles) -> None:
        q, k = _rows_contiguous(inputs.q), _rows_contiguous(inputs.k)
        positions, sliding_window = inputs.positions, inputs.sliding_window
        self._q, self._k, self._edges, self._tiles = q, k, len(inputs.edges), tiles
        self._window = _NEVER if sliding_window is None else sliding_window
        self._scale = inputs.scale * _LOG2_E
        starts = torch.arange(0, k.shape[1], tiles.columns)
        ends = (starts + (tiles.columns - 1)).clamp(max=_NEVER - self._window) + self._window
        parts = (
            torch.cat((positions, positions[-1:].expand(-positions.numel() % tiles.rows))),
            torch.searchsorted(positions, starts) // tiles.rows,
            (torch.searchsorted(positions, ends) + (tiles.rows - 1)) // tiles.rows,
            torch.tensor(inputs.edges),
        )
        joined = to_device(torch.cat(parts).to(torch.int32), q.device)
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
            offsets, self._rows(), norms, self._positions, self._sizes(), **options
        )

    def add_to(self, far: torch.Tensor, offsets: torch.Tensor, norms: torch.Tensor | None) -> None:
        """Add every column's mass by edge."""
        column_sums[(self._first.numel(), self._q.shape[0])](
            ColumnSums(far, *far.stride()),
            offsets,
            self._rows(),
            offsets if norms is None else norms,
            self._positions,
            EdgeTiles(self._first, self._last, self._distances),
            self._sizes(),
            FORM=EdgeForm(
                self._edges, triton.next_power_of_2(max(2, self._edges)), norms is not None
            ),
            **self._options(),
        )

    def _rows(self) -> RowsOfHeads:
        q, k = self._q, self._k
        return RowsOfHeads(q, q.stride(0), q.stride(1), k, k.stride(0), k.stride(1))

    def _sizes(self) -> Sizes:
        q, k = self._q, self._k
        return Sizes(
            q.shape[1],
            self._positions.numel(),
            k.shape[1],
            q.shape[0] // k.shape[0],
            self._scale,
            self._window,
        )

    def _options(self) -> dict[str, TileForm | int]:
        tiles, size = self._tiles, self._q.shape[2]
        return {
            "TILE": TileForm(
                size, max(16, triton.next_power_of_2(size)), tiles.columns, tiles.rows
            ),
            "num_warps": tiles.warps,
            "num_stages": tiles.stages,
        }


@triton.jit
def column_sums(
    far: ColumnSums,
    offsets: tl.tensor,
    rows_of: RowsOfHeads,
    norms: tl.tensor,
    positions: tl.tensor,
    tiles: EdgeTiles,
    sizes: Sizes,
    FORM: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Program (column tile, query head). A row's `offset` is what its exponents are relative to.

    From the last rows to the first their distance to a column shrinks, past one edge after another:
    what a column has received when an edge is passed is what it receives from beyond that edge.
    Between edges and within the window a tile needs neither masks nor sums of its own.
    """
    EDGES: tl.constexpr = FORM.edges
    BLOCK_E: tl.constexpr = FORM.block_e
    D: tl.constexpr = TILE.size
    BLOCK_D: tl.constexpr = TILE.block_d
    BLOCK_N: tl.constexpr = TILE.columns
    BLOCK_M: tl.constexpr = TILE.rows
    tile = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    begin = tile * BLOCK_N
    column = begin + tl.arange(0, BLOCK_N)
    exists = column < sizes.columns
    size = tl.arange(0, BLOCK_D)
    keys = tl.load(
        rows_of.k
        + head // sizes.group * rows_of.k_head
        + column[:, None].to(tl.int64) * rows_of.k_row
        + size[None, :],
        mask=exists[:, None] & (size[None, :] < D),
        other=0.0,
    )
    number = tl.arange(0, BLOCK_E)
    distances = tl.load(tiles.distances + number, mask=number < EDGES, other=_LATEST)
    mass = tl.zeros([BLOCK_N, BLOCK_E], tl.float32)
    row_attention = tl.zeros([BLOCK_N, _LANES], tl.float32)
    # edges up to `ahead` are not passed yet, and the next of the others is `behind`
    ahead, behind = tl.cast(_LATEST, tl.int32), 0
    last = tl.load(tiles.last + tile)
    place = tl.arange(0, BLOCK_M)
    in_tile = place[None, :] * rows_of.q_row + size[:, None]
    for back in range(last - tl.load(tiles.first + tile)):
        first = (last - 1 - back) * BLOCK_M
        offset = tl.load(offsets + head * sizes.padded + first + place)
        queries = tl.load(
            rows_of.q + head * rows_of.q_head + first.to(tl.int64) * rows_of.q_row + in_tile,
            mask=(first + place < sizes.rows)[None, :] & (size[:, None] < D),
            other=0.0,
        )
        exponents = tile_product(keys, queries) * sizes.scale - offset[None, :]
        nearest = tl.load(positions + first) - (begin + BLOCK_N - 1)
        farthest = tl.load(positions + first + BLOCK_M - 1) - begin
        mixed = (nearest < tl.maximum(ahead, 0)) | (farthest >= behind)
        if mixed:
            # columns that do not exist come after every position
            distance = tl.load(positions + first + place)[None, :] - column[:, None]
            seen = (distance >= 0) & (distance < sizes.window)
            exponents = tl.where(seen, exponents, float("-inf"))
        shares = tl.exp2(exponents)
        if mixed:
            passed = (distances > nearest) & (distances <= ahead)
            mass += tl.where(passed[None, :], tl.sum(row_attention, 1)[:, None], 0.0)
            distance = tl.load(positions + first + place)[None, :] - column[:, None]
            for edge in range(EDGES):
                least = tl.load(tiles.distances + edge)
                # it belongs to some pairs of the tile and not to others
                if (least > nearest) & (least <= farthest):
                    part = tl.sum(tl.where(distance >= least, shares, 0.0), 1)
                    mass += tl.where(number[None, :] == edge, part[:, None], 0.0)
            ahead = tl.max(tl.where(distances <= nearest, distances, -1), 0)
            behind = tl.min(tl.where(distances > nearest, distances, sizes.window), 0)
            behind = tl.minimum(behind, sizes.window)
        row_attention += tl.sum(tl.reshape(shares, (BLOCK_N, BLOCK_M // _LANES, _LANES)), 1)
    mass += tl.where((distances <= ahead)[None, :], tl.sum(row_attention, 1)[:, None], 0.0)
    if FORM.weighted:
        norm = tl.load(norms + head // sizes.group * sizes.columns + column, mask=exists, other=0.0)
        mass *= norm[:, None]
    target = far.data + head * far.head + number[None, :] * far.edge
    target += column[:, None] * far.column
    wanted = exists[:, None] & (number[None, :] < EDGES)
    tl.store(target, tl.load(target, mask=wanted, other=0.0) + mass, mask=wanted)


@triton.jit
def row_totals(
    offsets: tl.tensor,
    rows_of: RowsOfHeads,
    norms: tl.tensor,
    positions: tl.tensor,
    sizes: Sizes,
    TILE: tl.constexpr,
) -> None:
    """Program (row tile, query head): offsets grow by the logarithm of the rows' weighted mass."""
    D: tl.constexpr = TILE.size
    BLOCK_D: tl.constexpr = TILE.block_d
    BLOCK_N: tl.constexpr = TILE.columns
    BLOCK_M: tl.constexpr = TILE.rows
    first = tl.program_id(0) * BLOCK_M
    head = tl.program_id(1).to(tl.int64)
    row = first + tl.arange(0, BLOCK_M)
    valid = row < sizes.rows
    size = tl.arange(0, BLOCK_D)
    position = tl.load(positions + row, mask=valid, other=-1)
    offset = tl.load(offsets + head * sizes.padded + row, mask=valid, other=0.0)
    queries = tl.load(
        rows_of.q
        + head * rows_of.q_head
        + row[:, None].to(tl.int64) * rows_of.q_row
        + size[None, :],
        mask=valid[:, None] & (size[None, :] < D),
        other=0.0,
    )
    earliest = tl.load(positions + first)
    latest = tl.load(positions + tl.minimum(first + BLOCK_M, sizes.rows) - 1)
    oldest = tl.maximum(earliest - sizes.window + 1, 0)
    total = tl.zeros([BLOCK_M, _LANES], tl.float32)
    place = tl.arange(0, BLOCK_N)
    in_tile = place[None, :] * rows_of.k_row + size[:, None]
    for begin in range(oldest // BLOCK_N * BLOCK_N, latest + 1, BLOCK_N):
        column = begin + place
        exists = column < sizes.columns
        keys = tl.load(
            rows_of.k
            + head // sizes.group * rows_of.k_head
            + tl.cast(begin, tl.int64) * rows_of.k_row
            + in_tile,
            mask=exists[None, :] & (size[:, None] < D),
            other=0.0,
        )
        norm = tl.load(norms + head // sizes.group * sizes.columns + column, mask=exists, other=0.0)
        exponents = tile_product(queries, keys) * sizes.scale - offset[:, None]
        # columns that do not exist come after every position
        if (begin + BLOCK_N - 1 > earliest) | (latest - begin >= sizes.window):
            distance = position[:, None] - column[None, :]
            seen = (distance >= 0) & (distance < sizes.window)
            exponents = tl.where(seen, exponents, float("-inf"))
        shares = tl.exp2(exponents)
        weighted = tl.reshape(shares * norm[None, :], (BLOCK_M, BLOCK_N // _LANES, _LANES))
        total += tl.sum(weighted, 1)
    # a row that sees only values of norm zero has nothing to share out, and no logarithm
    mass = tl.maximum(tl.sum(total, 1), 1e-30)
    tl.store(offsets + head * sizes.padded + row, offset + tl.log2(mass), mask=valid)

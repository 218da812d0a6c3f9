"""Column mass at the cost of one product, one exponential and one sum per (row, column)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch

from kvstore.kernels.column_mass.input import ColumnMassInput

_LOG2_E = math.log2(math.e)

# probabilities of a row block in flight: at 4,096 tokens and 9 heads 64 rows took 0.17 s a layer,
# 16 rows 0.28 s, and half the elements 0.23 s
_TILE_ELEMENTS = 1 << 21
_MAX_ROWS = 64
_MIN_ROWS = 8

# a row that sees only values of norm zero has nothing to share out, and must not make a NaN of it
_LEAST_NORM = 1e-30


def column_mass(far: torch.Tensor, inputs: ColumnMassInput) -> None:
    """Compute op.py's column mass, block by block.

    Rows go in blocks. A block's column sums hold for every edge `e` in all columns at least `e`
    before its first row; only the columns between that and `e` before its last row belong to the
    edge for some rows and not for others, and need a masked sum. So an edge costs a block's span
    of columns and not n.
    """
    q, k, lse, value_norms = inputs.q, inputs.k, inputs.lse, inputs.value_norms
    positions = inputs.positions
    if not positions.numel():
        return
    heads, n = q.shape[0], k.shape[1]
    group = heads // k.shape[0]
    # with −lse as a further column of q and 1 as one of k, the product is the exponent itself
    queries = torch.cat(
        [q.float() * (inputs.scale * _LOG2_E), lse.float()[..., None] * -_LOG2_E], -1
    )
    keys = torch.nn.functional.pad(k.float(), (0, 1), value=1.0).transpose(1, 2)
    sums = far if value_norms is None else torch.zeros_like(far[:, :, :n])
    step = _block_rows(heads * n)
    buffer = torch.empty(heads * step * n, device=q.device)
    norms = None if value_norms is None else _per_query_head(value_norms, group)
    for first in range(0, positions.numel(), step):
        rows = slice(first, first + step)
        block = _Block.spanning(positions[rows].tolist(), inputs.sliding_window, q.device)
        mass = _probabilities(queries[:, rows], keys, block, buffer)
        weights = _row_weights(mass, None if norms is None else norms[:, block.columns])
        block.add_to(sums, mass, weights, inputs.edges)
    if norms is not None:
        far[:, :, :n] += sums * norms[:, None]


def _per_query_head(value_norms: torch.Tensor, group: int) -> torch.Tensor:
    return value_norms.float().repeat_interleave(group, 0)


def _block_rows(elements_per_row: int) -> int:
    return max(_MIN_ROWS, min(_MAX_ROWS, _TILE_ELEMENTS // elements_per_row))


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Query rows at positions `first` to `last` and the columns that any of them sees.

    `reached` f32 `[b, last − first]`: whether the row is at least `t + 1` after the first.
    `window` is the sliding window, or more than any distance.
    """

    first: int
    last: int
    columns: slice
    reached: torch.Tensor
    window: int

    @classmethod
    def spanning(
        cls, positions: list[int], sliding_window: int | None, device: torch.device
    ) -> _Block:
        first, last = positions[0], positions[-1]
        window = last + 1 if sliding_window is None else sliding_window
        offsets = torch.tensor(positions, device=device)[:, None] - first
        reached = offsets > torch.arange(last - first, device=device)
        return cls(
            first, last, slice(max(0, first - window + 1), last + 1), reached.float(), window
        )

    def straddled(self, distance: int) -> tuple[slice, torch.Tensor]:
        """Columns (from `columns.start`) at least `distance` before some rows but not before all.

        With them goes the part of `reached` that says which rows.
        """
        begin = self.first - distance + 1
        end = self.last - distance + 1
        start = min(max(begin, self.columns.start), max(end, self.columns.start))
        base = self.columns.start
        part = slice(start - base, max(start, end) - base)
        return part, self.reached[:, start - begin : max(start, end) - begin]

    def hide(self, exponents: torch.Tensor) -> None:
        """Set what lies in a row's future, or beyond its sliding window, to −inf."""
        part, reached = self.straddled(0)
        exponents[:, :, part].masked_fill_(reached == 0, -torch.inf)
        part, reached = self.straddled(self.window)
        exponents[:, :, part].masked_fill_(reached == 1, -torch.inf)

    def add_to(
        self,
        sums: torch.Tensor,
        mass: torch.Tensor,
        weights: torch.Tensor,
        edges: Sequence[int],
    ) -> None:
        """Add the block's weighted column sums to `sums` `[HQ, E, n]`, edge by edge.

        `mass` `[HQ, b, c]` over this block's columns; `weights` `[HQ, 1, b]`.
        """
        base = self.columns.start
        totals = torch.bmm(weights, mass).squeeze(1)
        straddling = []
        for number, edge in enumerate(edges):
            # `hide` has already cut off what lies at less than distance 0
            end = self.first - edge + 1 if edge else self.last + 1
            if end > base:
                sums[:, number, base:end] += totals[:, : end - base]
            part, reached = self.straddled(edge)
            if edge and part.stop > part.start:
                straddling.append((number, part, reached))
        if straddling:
            self._add_straddling(sums, mass, weights, straddling)

    def _add_straddling(
        self,
        sums: torch.Tensor,
        mass: torch.Tensor,
        weights: torch.Tensor,
        straddling: list[tuple[int, slice, torch.Tensor]],
    ) -> None:
        """The masked sums, all edges side by side in one product."""
        widths = [part.stop - part.start for _, part, _ in straddling]
        strip = mass.new_empty(*mass.shape[:2], sum(widths))
        for (_, part, reached), piece in zip(
            straddling, torch.split(strip, widths, 2), strict=True
        ):
            torch.mul(mass[:, :, part], reached, out=piece)
        partial = torch.bmm(weights, strip).squeeze(1)
        for (number, part, _), piece in zip(
            straddling, torch.split(partial, widths, 1), strict=True
        ):
            base = self.columns.start
            sums[:, number, base + part.start : base + part.stop] += piece


def _probabilities(
    queries: torch.Tensor, keys: torch.Tensor, block: _Block, buffer: torch.Tensor
) -> torch.Tensor:
    """`A` of a block's rows in the columns it sees, `[HQ, b, c]`, written into `buffer`."""
    heads, rows, _ = queries.shape
    kv_heads, columns = keys.shape[0], block.columns.stop - block.columns.start
    mass = buffer[: heads * rows * columns].view(heads, rows, columns)
    torch.bmm(
        queries.reshape(kv_heads, -1, queries.shape[2]),
        keys[:, :, block.columns],
        out=mass.view(kv_heads, -1, columns),
    )
    block.hide(mass)
    return mass.exp2_()


def _row_weights(mass: torch.Tensor, norms: torch.Tensor | None) -> torch.Tensor:
    """Return the weight of each row, `[HQ, 1, b]`: one, or the factor that renormalises the row."""
    if norms is None:
        return mass.new_ones(mass.shape[0], 1, mass.shape[1])
    totals = torch.bmm(mass, norms[:, :, None])
    return totals.clamp_min_(_LEAST_NORM).reciprocal_().transpose(1, 2)

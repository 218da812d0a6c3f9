"""The loops that are counted: what a round of each has to move, to multiply and to raise."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator

import torch

from benchmarks.gpu import column_mass, decode_attention, retain
from benchmarks.gpu.compiling import compiled_by
from benchmarks.gpu.listing import Listing
from benchmarks.gpu.pool import fill
from benchmarks.gpu.sizes import TINY
from kvstore.kernels.column_mass import kernel as column_mass_kernel
from kvstore.kernels.column_mass.input import ColumnMassInput
from kvstore.kernels.compact.kernel import gather_rows, rows_a_program
from kvstore.kernels.ragged_attention import attend_slice, combine, row_attention
from kvstore.kernels.ragged_attention.kernel import ROW_TILE
from kvstore.kernels.retain import decision, moves
from kvstore.kernels.retain import kernel as retain_kernel
from kvstore.row_codecs import KeyValueLayout, RowCodec

ATTENTION_CODECS = ("model", "int8", "fp8", "int8/int4", "int4")
_GATHER_CODECS = ("model", "int8", "int4")
_SIZES = dataclasses.replace(
    TINY, layers=1, kv_heads=8, group=4, head_size=128, page_rows=64, context=512
)


@dataclasses.dataclass(frozen=True, slots=True)
class Round:
    """A round of a loop, or a program without one: its instructions, and what limits them."""

    name: str
    of: str
    kernel: Listing
    instructions: tuple[str, ...]
    moved_bytes: float = 0
    multiply_adds: float = 0
    exponentials: float = 0


def rounds() -> Iterator[Round]:
    yield from _attention()
    yield from _column_mass()
    yield from _gather()
    yield from _retain()


def attention(codec: str, *, scored: bool = False) -> tuple[dict[str, Listing], int]:
    """The kernels of a step over rows of a codec, by name, and the bytes of a row."""
    rows = torch.full((1, 1, _SIZES.kv_heads), _SIZES.mean_rows, dtype=torch.int32)
    pool = fill(rows, _SIZES, codec=RowCodec.parse(codec))
    kernels = _by_name(decode_attention.step(pool, _SIZES, scored=scored))
    return kernels, pool.batch.row_pages.page_layout.row_bytes


def _attention() -> Iterator[Round]:
    for codec in ATTENTION_CODECS:
        kernels, row_bytes = attention(codec)
        kernel = kernels["attend_slice"]
        (loop,) = kernel.loops(attend_slice.attend_slice, "for at in")
        yield Round(codec, f"{ROW_TILE} rows", kernel, loop.shortest, ROW_TILE * row_bytes)
    kernels, _ = attention("model", scored=True)
    (loop,) = kernels["combine_partials"].loops(combine.combine_partials, "for number in")
    partial = 4 * _SIZES.group * (2 + _SIZES.head_size)
    partials = combine.COMBINED.value
    yield Round(
        "combine_partials",
        f"{partials} partials",
        kernels["combine_partials"],
        loop.all,
        partials * partial,
    )
    (loop,) = kernels["write_row_attention"].loops(row_attention.write_saved_attention, "for at in")
    row, tile = 4 * _SIZES.group + 4, 4 * ROW_TILE
    yield Round(
        "write_row_attention", f"{tile} rows", kernels["write_row_attention"], loop.all, tile * row
    )


def _column_mass() -> Iterator[Round]:
    heads, query_heads, rows, size = _SIZES.kv_heads, _SIZES.query_heads, 512, _SIZES.head_size
    q, k = torch.zeros(query_heads + heads, rows, size, dtype=_SIZES.dtype).split(
        (query_heads, heads)
    )
    kernels = _by_name(
        lambda: column_mass_kernel.column_mass(
            torch.zeros(query_heads, len(column_mass.EDGES), rows),
            ColumnMassInput(
                q,
                k,
                torch.zeros(query_heads, rows),
                torch.arange(rows),
                edges=column_mass.EDGES,
                scale=1 / 8,
                sliding_window=None,
                value_norms=torch.ones(heads, rows),
            ),
        )
    )
    tiles = column_mass_kernel.tiles_for(size, _SIZES.dtype)
    pairs = tiles.rows * tiles.columns
    of = f"{tiles.columns} columns, {tiles.rows} rows"
    for name, function, statement in (
        ("column_sums", column_mass_kernel.column_sums, "for back in"),
        ("row_totals", column_mass_kernel.row_totals, "for begin in"),
    ):
        kernel = kernels[function.fn.__name__]
        (loop,) = kernel.loops(function, statement)
        # tiles in which all is visible and no edge lies take the shortest way
        yield Round(name, of, kernel, loop.shortest, 0, pairs * size, pairs)


def _gather() -> Iterator[Round]:
    heads, size = _SIZES.kv_heads, _SIZES.head_size
    k, v = torch.zeros(2, heads, 512, size, dtype=_SIZES.dtype)
    ends = torch.arange(1, heads + 1, dtype=torch.int32) * 32
    rows = torch.arange(32, dtype=torch.int32).repeat(heads)
    for codec in _GATHER_CODECS:
        layout = KeyValueLayout(RowCodec.parse(codec), size, _SIZES.dtype)
        call = functools.partial(gather_rows, k, v, rows, ends, layout)
        (kernel,) = _by_name(call).values()
        tile = rows_a_program(layout)
        moved = tile * (_SIZES.row_bytes + layout.row_bytes + 4)
        yield Round(f"gather_{codec}", f"{tile} rows", kernel, kernel.shortest(), moved)


def _retain() -> Iterator[Round]:
    """Yield rounds for heads that may lose rows, without and with scores, and for moving rows."""
    tokens = retain.RETENTION_CHUNK_TOKENS
    kernel = _by_name(retain.step(_SIZES, torch.device("cpu"), tokens))["retain_head"]
    clauses, stays = kernel.loops(decision.decide_rows, "for first in")
    (holes,) = kernel.loops(moves.list_moves, "for first in")
    (moving, scores) = kernel.loops(retain_kernel.retain_head, "for first in")
    victim, *_ = kernel.loops(decision.last_loser, "for _ in")
    tile = retain_kernel.ROW_TILE
    window = clauses.shortest + holes.shortest
    yield Round("retain_window", f"{tile:,} rows", kernel, window, 8 * tile)
    # at most; victims are looked for in two tiles at once
    budget = clauses.all + stays.all + holes.shortest + scores.all + tokens // 2 * victim.all
    yield Round("retain_budget", f"{tile:,} rows", kernel, budget, 32 * tile)
    tile = retain_kernel.MOVE_TILE
    moved = tile * 2 * _SIZES.row_bytes
    yield Round("retain_moves", f"{tile} rows", kernel, moving.shortest, moved)


def _by_name(call: Callable[[], object]) -> dict[str, Listing]:
    return {kernel.name: kernel for kernel in compiled_by(call)}

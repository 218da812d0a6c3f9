"""Writing rows into a head's slots: a loaded layer's, and a block's by its moves."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvstore.cache import HeadRows
from kvstore.kernels.retain import RetainMoves, RowMarks
from kvstore.pool.head import HeadPages
from kvstore.pool.storage import PageStorage, read_rows, write_rows


def fill(storage: PageStorage, table: HeadPages, source: HeadRows) -> None:
    """Make an empty head hold exactly the rows of `source`. Its pages must suffice."""
    table.rule = source.rule
    table.extend(source.rows)
    table.settle(source.rows)
    write_rows(storage.keys, table.index, source.keys.to(storage.keys.device))
    write_rows(storage.values, table.index, source.values.to(storage.keys.device))
    write_rows(storage.positions, table.index, source.positions.to(storage.keys.device))
    if source.scores is not None:
        write_rows(storage.scores, table.index, source.scores.to(storage.keys.device))
    if source.flags is not None:
        write_rows(storage.flags, table.index, source.flags.to(storage.keys.device))


def carry_out(
    storage: PageStorage,
    tables: Sequence[HeadPages],
    moves: Sequence[RetainMoves],
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    fed: RowMarks,
) -> None:
    """Change the layer's slots as the moves say, the heads' rows together in one write.

    Shapes as in `SequencePages.retain`. The reservation must hold the pages the moves need.
    """
    for table, move in zip(tables, moves, strict=True):
        table.extend(move.rows)
    _move_tails(storage, tables, moves)
    _place(storage, tables, moves, new_keys, new_values, fed)
    for table, move in zip(tables, moves, strict=True):
        table.settle(move.rows)
        if move.scores is not None:
            write_rows(storage.scores, table.index, move.scores)


def _move_tails(
    storage: PageStorage, tables: Sequence[HeadPages], moves: Sequence[RetainMoves]
) -> None:
    pairs = [
        (table.flat(slot), table.flat(old))
        for table, move in zip(tables, moves, strict=True)
        for slot, old in move.moved
    ]
    if pairs:
        storage.move([slot for slot, _ in pairs], [old for _, old in pairs])


def _place(
    storage: PageStorage,
    tables: Sequence[HeadPages],
    moves: Sequence[RetainMoves],
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    fed: RowMarks,
) -> None:
    heads, block, size = new_keys.shape
    targets: list[int] = []
    sources: list[int] = []
    for head, (table, move) in enumerate(zip(tables, moves, strict=True)):
        targets += [table.flat(slot) for slot, _ in move.placed]
        sources += [head * block + new for _, new in move.placed]
    if not targets:
        return
    target, source = storage.index(targets), storage.index(sources)
    write_rows(storage.keys, target, read_rows(new_keys.reshape(heads * block, size), source))
    write_rows(storage.values, target, read_rows(new_values.reshape(heads * block, size), source))
    write_rows(storage.positions, target, read_rows(fed.positions.repeat(heads), source))
    if fed.flags is not None:
        write_rows(storage.flags, target, read_rows(fed.flags.repeat(heads), source))

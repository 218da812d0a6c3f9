"""The values that go into and come out of a retention decision."""

from __future__ import annotations

import dataclasses

import torch


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class RowMarks:
    """What a rule looks at in a head's rows: all but their keys and values.

    `positions` int32 `[R]`; `scores` f32 `[R]` and `flags` uint8 `[R]` where the rule needs them
    (of new rows the flags may be given always, and scores never).
    """

    positions: torch.Tensor
    scores: torch.Tensor | None = None
    flags: torch.Tensor | None = None

    @property
    def rows(self) -> int:
        return int(self.positions.shape[0])


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class RetainMoves:
    """How a head's slots change, as data: nothing that stays and need not move is touched.

    `placed`: (slot, new row) pairs, first into victims' slots in ascending order, then appended.
    `moved`: (slot, old slot) pairs that fill the holes still open from the tail; every old slot
    is at or beyond `rows`. `rows`: slots in use afterwards, 0 to `rows` − 1. `scores` f32
    `[rows]`: every slot's score afterwards, None where the rule needs none.
    No slot is written twice, and no old slot is written at all, so the order of carrying the
    pairs out does not matter.
    """

    placed: tuple[tuple[int, int], ...]
    moved: tuple[tuple[int, int], ...]
    rows: int
    scores: torch.Tensor | None = None

"""A pool on the device with sequences of random rows, and what its heads hold as plain data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch

from kvstore.kernels.retain import kernel
from kvstore.rule_table import encode, full_rules, may_evict, needs_scores
from kvstore.rules import RetentionRule

PAGE_ROWS, SIZE, TABLE_PAGES, POOL_PAGES, CELLS = 16, 4, 24, 120, 40


@dataclasses.dataclass(frozen=True)
class Row:
    """What is stored of one row; score, class and weight where the head has marks."""

    key: tuple[float, ...]
    value: tuple[float, ...]
    score: float = 0.0
    flag: int = 0
    log_weight: float = 0.0


class DevicePool:
    """One sequence per entry of `counts` `[B][L][H]`, in slots, pages and mark pages out of order.

    Heads of a layer beyond its `counts` do not exist. Everything not held is NaN.
    """

    def __init__(
        self,
        counts: Sequence[Sequence[Sequence[int]]],
        rules: Sequence[Sequence[Sequence[RetentionRule]]],
        lengths: Sequence[int],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.device, self.lengths = device, list(lengths)
        sequences, layers = len(counts), len(counts[0])
        heads = max(len(layer) for layer in counts[0])
        self.kv_heads = [len(layer) for layer in counts[0]]
        self.slots = torch.randperm(sequences + 1)[:sequences]
        shape = (sequences + 1, layers, heads)
        self.keys, self.values = torch.full((2, POOL_PAGES * PAGE_ROWS, SIZE), math.nan).to(dtype)
        self.positions = torch.full((POOL_PAGES * PAGE_ROWS,), -5, dtype=torch.int32)
        self.scores = torch.full((POOL_PAGES * PAGE_ROWS,), math.nan)
        self.log_weights = torch.full((POOL_PAGES * PAGE_ROWS,), math.nan)
        self.flags = torch.full((POOL_PAGES * PAGE_ROWS,), 255, dtype=torch.uint8)
        self.pages = torch.full((*shape, TABLE_PAGES), -1, dtype=torch.int32)
        self.marks = self.pages.clone()
        self.rows = torch.zeros(shape, dtype=torch.int32)
        self.rules = full_rules(shape)
        free = [torch.randperm(POOL_PAGES).tolist() for _ in range(2)]
        for b, layer, h in self.heads(counts):
            place = (int(self.slots[b]), layer, h)
            self.rows[place] = counts[b][layer][h]
            self.rules[place] = encode(rules[b][layer][h])
            self._fill(place, lengths[b], free)
        self.free_pages, self.free_marks = (
            kernel.FreePages.of(POOL_PAGES, torch.tensor(left, dtype=torch.int32, device=device))
            for left in free
        )
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, name, value.to(device))

    @staticmethod
    def heads(counts: Sequence[Sequence[Sequence[object]]]) -> list[tuple[int, int, int]]:
        return [
            (b, layer, h)
            for b, sequence in enumerate(counts)
            for layer, of_layer in enumerate(sequence)
            for h in range(len(of_layer))
        ]

    def _fill(self, place: tuple[int, int, int], length: int, free: list[list[int]]) -> None:
        count = int(self.rows[place])
        pages = -(-count // PAGE_ROWS)
        self.pages[place][:pages] = torch.tensor([free[0].pop() for _ in range(pages)])
        flat = self.flat(self.pages, place, range(count))
        self.keys[flat] = torch.randn(count, SIZE).to(self.keys.dtype)
        self.values[flat] = torch.randn(count, SIZE).to(self.keys.dtype)
        if may_evict(self.rules[place]):
            self.marks[place][:pages] = torch.tensor([free[1].pop() for _ in range(pages)])
            flat = self.flat(self.marks, place, range(count))
            self.positions[flat] = torch.randperm(length)[:count].int()
            # few different ones, so that some are equal
            self.scores[flat] = torch.randint(0, 9, (count,)) / 4
            self.log_weights[flat] = torch.randn(count)
            self.flags[flat] = torch.randint(0, 4, (count,)).to(torch.uint8)

    @staticmethod
    def flat(table: torch.Tensor, place: tuple[int, int, int], slots: Sequence[int]) -> list[int]:
        pages = table[place].tolist()
        return [pages[slot // PAGE_ROWS] * PAGE_ROWS + slot % PAGE_ROWS for slot in slots]

    def bounded(self, place: tuple[int, int, int]) -> bool:
        return bool(may_evict(self.rules[place]))

    def scored(self, place: tuple[int, int, int]) -> bool:
        return bool(needs_scores(self.rules[place]))

    def held(self, place: tuple[int, int, int]) -> list[tuple[int, Row]]:
        """Position and content of every row, in slot order; position −1 without marks."""
        slots = range(int(self.rows[place]))
        flat = self.flat(self.pages, place, slots)
        keys, values = self.keys.cpu()[flat].tolist(), self.values.cpu()[flat].tolist()
        if not self.bounded(place):
            return [(-1, Row(tuple(k), tuple(v))) for k, v in zip(keys, values, strict=True)]
        flat = self.flat(self.marks, place, slots)
        columns = [
            column.cpu()[flat].tolist()
            for column in (self.positions, self.scores, self.flags, self.log_weights)
        ]
        return [
            (p, Row(tuple(k), tuple(v), s if self.scored(place) else 0.0, f, w))
            for k, v, p, s, f, w in zip(keys, values, *columns, strict=True)
        ]

    def page_census(self) -> tuple[list[int], list[int]]:
        """All pages and all mark pages wherever they are now, sorted."""
        counts = -(-self.rows // PAGE_ROWS)
        census = []
        for table, free in ((self.pages, self.free_pages), (self.marks, self.free_marks)):
            taken, returned = int(free.taken), int(free.returned)
            ring = free.ring.tolist()
            found = [ring[n % len(ring)] for n in range(taken, returned)]
            for place in map(tuple, torch.nonzero(counts).tolist()):
                if table is self.pages or self.bounded(place):
                    found += table[place][: int(counts[place])].tolist()
            census.append(sorted(found))
        return census[0], census[1]

    def step(self, new: NewRows) -> None:
        """Retain once; attention is what `new` says it was."""
        sequences, layers, heads = len(self.slots), *self.rows.shape[1:]
        starts = torch.full((sequences, layers, heads), -1)
        total = 3
        for b, layer, h in new.received:
            starts[b, layer, h] = total
            total += len(new.received[b, layer, h]) + 3
        received = torch.full((total,), math.nan)
        for at, shares in new.received.items():
            if self.scored((int(self.slots[at[0]]), *at[1:])):
                received[starts[at] : starts[at] + len(shares)] = shares
        here = self.device
        kernel.retain(
            new.keys.to(here),
            new.values.to(here),
            new.cells.to(here),
            new.flags.to(here),
            torch.tensor(self.lengths, device=here),
            self.keys,
            self.values,
            self.positions,
            self.scores,
            self.flags,
            self.log_weights,
            self.pages,
            self.marks,
            self.rows,
            kernel.rule_words(self.rules).to(here),
            self.slots.int(),
            torch.tensor(self.kv_heads, dtype=torch.int32, device=here),
            starts.to(here),
            received.to(here),
            torch.full((total,), 77, dtype=torch.uint8, device=here),
            torch.full((total, 2), -9, dtype=torch.int32, device=here),
            self.free_pages,
            self.free_marks,
            page_rows=PAGE_ROWS,
        )
        self.lengths = [length + new.flags.shape[1] for length in self.lengths]


@dataclasses.dataclass(frozen=True)
class NewRows:
    """What a step feeds: rows in cells, classes, and what bounded heads' rows received."""

    keys: torch.Tensor
    values: torch.Tensor
    cells: torch.Tensor
    flags: torch.Tensor
    received: dict[tuple[int, int, int], torch.Tensor]

    @classmethod
    def random(cls, pool: DevicePool, fed: int) -> NewRows:
        sequences, layers, heads = len(pool.slots), *pool.rows.shape[1:]
        keys, values = torch.randn(2, layers, heads, CELLS, SIZE).to(pool.keys.dtype)
        received = {}
        for b, slot in enumerate(pool.slots.tolist()):
            for layer in range(layers):
                for h in range(pool.kv_heads[layer]):
                    if pool.bounded((slot, layer, h)):
                        rows = int(pool.rows[slot, layer, h]) + fed
                        received[b, layer, h] = torch.randint(0, 5, (rows,)) / 4
        flags = torch.randint(0, 4, (sequences, fed)).to(torch.uint8)
        return cls(keys, values, torch.randperm(sequences).int() * fed, flags, received)

"""A pool on the device with sequences of random rows, and what its heads hold as plain data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch

from kvstore.kernels.device_batch import DeviceBatch, DeviceScratch
from kvstore.kernels.retain.free_pages import FreePages
from kvstore.kernels.retain.kernel import retain
from kvstore.kernels.row_pages import PageLayout, RowPages
from kvstore.row_codecs import MODEL_ROWS, KeyValueLayout, RowCodec, decode_rows, encode_rows
from kvstore.rule_table import full_rules, may_evict, needs_scores, rule_to_record, rule_words
from kvstore.rules import RetentionRule

# rows of the model's dtype in a page, and marks in one of theirs
PAGE_ROWS, MARK_ROWS = 16, 8
SIZE, TABLE_PAGES, POOL_PAGES, CELLS = 5, 48, 240, 40


@dataclasses.dataclass(frozen=True)
class Row:
    """A stored row, with score, class and weight where the head has metadata."""

    key: tuple[float, ...]
    value: tuple[float, ...]
    score: float = 0.0
    flag: int = 0
    log_weight: float = 0.0


class DevicePool:
    """One sequence per entry of `counts` `[B][L][H]`, in pages and mark pages out of order.

    Heads of a layer beyond its `counts` do not exist. Everything not held is NaN.
    """

    def __init__(
        self,
        counts: Sequence[Sequence[Sequence[int]]],
        rules: Sequence[Sequence[Sequence[RetentionRule]]],
        lengths: Sequence[int],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        codec: RowCodec = MODEL_ROWS,
    ) -> None:
        self.device, self.lengths = device, list(lengths)
        sequences, layers = len(counts), len(counts[0])
        heads = max(len(layer) for layer in counts[0])
        self.kv_heads = [len(layer) for layer in counts[0]]
        shape = (sequences, layers, heads)
        page_bytes = PAGE_ROWS * 2 * SIZE * dtype.itemsize
        layout = KeyValueLayout(codec, SIZE, dtype)
        arena = torch.full((POOL_PAGES * page_bytes,), 255, dtype=torch.uint8, device=device)
        self.row_pages = RowPages.of(arena, PageLayout.of(layout, page_bytes))
        metadata = POOL_PAGES * MARK_ROWS
        self.positions = torch.full((metadata,), -5, dtype=torch.int32, device=device)
        self.scores = torch.full((metadata,), math.nan, device=device)
        self.log_weights = torch.full((metadata,), math.nan, device=device)
        self.flags = torch.full((metadata,), 255, dtype=torch.uint8, device=device)
        self.pages = torch.full((*shape, TABLE_PAGES), -1, dtype=torch.int32, device=device)
        self.metadata = self.pages.clone()
        self.rows = torch.zeros(shape, dtype=torch.int32, device=device)
        self.rules = full_rules(shape)
        free = [torch.randperm(POOL_PAGES).tolist() for _ in range(2)]
        for place in self.heads(counts):
            b, layer, h = place
            self.rows[place] = counts[b][layer][h]
            self.rules[place] = rule_to_record(rules[b][layer][h])
            self._fill(place, lengths[b], free)
        self.free_pages, self.free_marks = (
            FreePages.of(POOL_PAGES, torch.tensor(left, dtype=torch.int32, device=device))
            for left in free
        )

    @staticmethod
    def heads(counts: Sequence[Sequence[Sequence[object]]]) -> list[tuple[int, int, int]]:
        return [
            (b, layer, h)
            for b, sequence in enumerate(counts)
            for layer, of_layer in enumerate(sequence)
            for h in range(len(of_layer))
        ]

    @property
    def page_rows(self) -> int:
        return self.row_pages.page_rows

    def _fill(self, place: tuple[int, int, int], length: int, free: list[list[int]]) -> None:
        count, layout, device = int(self.rows[place]), self.row_pages.layout, self.device
        self._give_pages(self.pages, place, -(-count // self.page_rows), free[0])
        at = self.index(place)
        for stored, part in (
            (self.row_pages.keys, layout.keys),
            (self.row_pages.values, layout.values),
        ):
            rows = torch.randn(count, SIZE).to(part.dtype)
            stored[at] = encode_rows(rows, part, pre_rotated=True).to(device)
        if self.bounded(place):
            self._give_pages(self.metadata, place, -(-count // MARK_ROWS), free[1])
            flat = self.metadata_index(place)
            self.positions[flat] = torch.randperm(length)[:count].int().to(device)
            # few different ones, so that some are equal
            self.scores[flat] = (torch.randint(0, 9, (count,)) / 4).to(device)
            self.log_weights[flat] = torch.randn(count).to(device)
            self.flags[flat] = torch.randint(0, 4, (count,)).to(torch.uint8).to(device)

    def _give_pages(
        self, table: torch.Tensor, place: tuple[int, int, int], count: int, free: list[int]
    ) -> None:
        taken = torch.tensor([free.pop() for _ in range(count)], dtype=torch.int32)
        table[place][:count] = taken.to(self.device)

    def index(self, place: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the row index of a head's rows."""
        slots = torch.arange(int(self.rows[place]), device=self.device)
        return self.pages[place][slots // self.page_rows].long(), slots % self.page_rows

    def metadata_index(self, place: tuple[int, int, int]) -> torch.Tensor:
        slots = torch.arange(int(self.rows[place]), device=self.device)
        return self.metadata[place][slots // MARK_ROWS].long() * MARK_ROWS + slots % MARK_ROWS

    def bounded(self, place: tuple[int, int, int]) -> bool:
        return bool(may_evict(self.rules[place]))

    def scored(self, place: tuple[int, int, int]) -> bool:
        return bool(needs_scores(self.rules[place]))

    def as_held(self, rows: torch.Tensor, *, values: bool) -> list[tuple[float, ...]]:
        """Return rows `[n, SIZE]` after encoding and decoding."""
        layout = self.row_pages.layout.values if values else self.row_pages.layout.keys
        coded = encode_rows(rows, layout, pre_rotated=True)
        return [tuple(row) for row in decode_rows(coded, layout, keep_rotated=True).tolist()]

    def held(self, place: tuple[int, int, int]) -> list[tuple[int, Row]]:
        """Position and content of every row, in slot order; position −1 without marks."""
        at = self.index(place)
        keys = self.row_pages.decoded_keys(at).cpu().tolist()
        values = self.row_pages.decoded_values(at).cpu().tolist()
        if not self.bounded(place):
            return [(-1, Row(tuple(k), tuple(v))) for k, v in zip(keys, values, strict=True)]
        flat = self.metadata_index(place)
        columns = [
            column[flat].tolist()
            for column in (self.positions, self.scores, self.flags, self.log_weights)
        ]
        return [
            (p, Row(tuple(k), tuple(v), s if self.scored(place) else 0.0, f, w))
            for k, v, p, s, f, w in zip(keys, values, *columns, strict=True)
        ]

    def page_census(self) -> tuple[list[int], list[int]]:
        """All pages and all mark pages wherever they are now, sorted."""
        census = []
        for table, free, size in (
            (self.pages, self.free_pages, self.page_rows),
            (self.metadata, self.free_marks, MARK_ROWS),
        ):
            counts = -(-self.rows // size)
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
        starts = torch.full(self.rows.shape, -1)
        total = 3
        for at, shares in new.row_attention.items():
            starts[at] = total
            total += len(shares) + 3
        row_attention = torch.full((total,), math.nan)
        for at, shares in new.row_attention.items():
            if self.scored(at):
                row_attention[starts[at] : starts[at] + len(shares)] = shares
        here, (sequences, layers, _) = self.device, self.rows.shape
        has_metadata = torch.from_numpy(may_evict(self.rules)).to(here)
        batch = DeviceBatch(
            row_pages=self.row_pages,
            positions=self.positions,
            scores=self.scores,
            metadata_flags=self.flags,
            log_weights=self.log_weights,
            metadata_page_rows=MARK_ROWS,
            kv_heads=torch.tensor(self.kv_heads, dtype=torch.int32, device=here),
            pages=self.pages,
            metadata=self.metadata,
            rows=self.rows,
            has_metadata=has_metadata,
            weighted=has_metadata,
            rules=torch.from_numpy(rule_words(self.rules)).to(here),
            lengths=torch.tensor(self.lengths, device=here),
            ends=self.rows,
            new_keys=new.keys.to(here),
            new_values=new.values.to(here),
            flags=new.flags.to(here),
            staging_slots=new.staging_slots.to(here),
            before=torch.zeros(sequences, dtype=torch.int32, device=here),
            counts=torch.full((sequences,), new.new_tokens, dtype=torch.int32, device=here),
            first_queries=new.staging_slots.to(here),
            most=new.new_tokens,
            single=new.new_tokens == 1,
            row_bound=1,
            weighted_layers=(True,) * layers,
        )
        scratch = DeviceScratch(
            starts.to(here),
            has_metadata,
            row_attention.to(here),
            torch.full((total,), 77, dtype=torch.uint8, device=here),
            (True,) * layers,
        )
        retain(batch, scratch, self.free_pages, self.free_marks)
        self.lengths = [length + new.new_tokens for length in self.lengths]


@dataclasses.dataclass(frozen=True)
class NewRows:
    """Staged rows and classes of a step, and the attention of bounded heads' rows."""

    keys: torch.Tensor
    values: torch.Tensor
    staging_slots: torch.Tensor
    flags: torch.Tensor
    new_tokens: int
    row_attention: dict[tuple[int, int, int], torch.Tensor]

    @classmethod
    def random(cls, pool: DevicePool, new_tokens: int) -> NewRows:
        sequences, layers, heads = pool.rows.shape
        size = (2, layers, heads, CELLS, SIZE)
        keys, values = torch.randn(size).to(pool.row_pages.layout.dtype)
        row_attention = {}
        for b in range(sequences):
            for layer in range(layers):
                for h in range(pool.kv_heads[layer]):
                    if pool.bounded((b, layer, h)):
                        rows = int(pool.rows[b, layer, h]) + new_tokens
                        row_attention[b, layer, h] = torch.randint(0, 5, (rows,)) / 4
        flags = torch.randint(0, 4, (CELLS,)).to(torch.uint8)
        return cls(
            keys,
            values,
            torch.randperm(sequences).int() * new_tokens,
            flags,
            new_tokens,
            row_attention,
        )

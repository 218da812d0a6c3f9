"""A pool of random rows on the device, its tables filled without a loop over heads."""

from __future__ import annotations

import dataclasses

import torch

from benchmarks.gpu.sizes import Sizes
from kvstore.kernels.device_batch import DeviceBatch
from kvstore.kernels.retain.free_pages import FreePages
from kvstore.kernels.row_pages import PageLayout, RowPages, StoredRows
from kvstore.row_codecs import MODEL_ROWS, ElementCodec, KeyValueLayout, RowCodec
from kvstore.rule_table import full_rules, rule_words


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Pages of a batch whose sequences feed a token each, and the pages that are free."""

    batch: DeviceBatch
    free: FreePages

    @property
    def rows(self) -> torch.Tensor:
        return self.batch.rows

    @property
    def row_count(self) -> int:
        """Rows there is room for."""
        return self.free.ring.numel() * self.batch.row_pages.page_rows

    def check(self) -> None:
        """Raise `AssertionError` if a head outgrew its table or pages ran out."""
        room = self.batch.pages.shape[3] * self.batch.row_pages.page_rows
        assert int(self.rows.max()) <= room, "a head's table has a column for each of its pages"
        assert not int(self.free.exhausted), "there are pages for all rows"


def fill(
    rows: torch.Tensor,
    sizes: Sizes,
    spare_pages: int = 0,
    codec: RowCodec = MODEL_ROWS,
    growth_rows: int = 1,
) -> Pool:
    """`rows` int32 `[B, L, H]` on the device; every head's table has columns for its growth."""
    sequences, layers, heads = rows.shape
    device, page_bytes = rows.device, sizes.page_rows * sizes.row_bytes
    page_layout = PageLayout.of(KeyValueLayout(codec, sizes.head_size, sizes.dtype), page_bytes)
    counts = (rows + page_layout.rows - 1) // page_layout.rows
    ends = counts.flatten().cumsum(0)
    held = int(ends[-1])
    order = torch.randperm(held + spare_pages, device=device).int()
    columns = -(-(int(rows.max()) + growth_rows) // page_layout.rows)
    number = torch.arange(columns, device=device)
    begins = (ends.view(rows.shape) - counts)[..., None]
    place = (begins + number).clamp_(max=order.numel() - 1)
    pages = torch.where(number < counts[..., None], order[place], -1).int().contiguous()
    line = rows.transpose(0, 1).reshape(layers, -1).cumsum(1)
    new = torch.randn(2, layers, heads, sequences, sizes.head_size, device=device)
    new_keys, new_values = new.to(sizes.dtype)
    each = torch.arange(sequences, dtype=torch.int32, device=device)
    nothing = torch.empty(0, device=device)
    words = torch.from_numpy(rule_words(full_rules(rows.shape)))
    batch = DeviceBatch(
        row_pages=_random_rows(order.numel(), page_layout, device),
        positions=nothing.int(),
        scores=nothing,
        metadata_flags=nothing.to(torch.uint8),
        log_weights=nothing,
        metadata_page_rows=sizes.page_rows,
        kv_heads=torch.full((layers,), heads, dtype=torch.int32, device=device),
        pages=pages,
        metadata=pages,
        rows=rows.clone(),
        has_metadata=torch.zeros_like(rows, dtype=torch.bool),
        weighted=torch.zeros_like(rows, dtype=torch.bool),
        rules=words.to(device),
        lengths=torch.full((sequences,), sizes.context, device=device),
        ends=line.int(),
        new_keys=new_keys,
        new_values=new_values,
        flags=torch.zeros(sequences, dtype=torch.uint8, device=device),
        staging_slots=each,
        before=torch.zeros_like(each),
        counts=torch.ones_like(each),
        first_queries=each,
        most=1,
        single=True,
        row_bound=int(line[:, -1].max()),
        weighted_layers=(False,) * layers,
    )
    return Pool(batch, FreePages.of(order.numel(), order[held:]))


def _random_rows(pages: int, page_layout: PageLayout, device: torch.device) -> RowPages:
    arena = torch.empty(pages * page_layout.page_bytes, dtype=torch.uint8, device=device)
    row_pages = RowPages.of(arena, page_layout)
    layout = page_layout.layout
    for part, row_layout in ((row_pages.keys, layout.keys), (row_pages.values, layout.values)):
        if row_layout.codec is ElementCodec.MODEL:
            part.codes.normal_()
        else:
            _random_codes(part)
    return row_pages


def _random_codes(rows: StoredRows) -> None:
    """Any codes, and scales under which they are like the model's rows."""
    rows.codes.random_(0, 120)
    scale = torch.tensor([0.01], dtype=torch.bfloat16).view(torch.uint8)
    count = rows.scales.shape[-1] // scale.numel()
    rows.scales[...] = scale.repeat(count).to(rows.scales.device)

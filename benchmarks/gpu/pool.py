"""A pool of random rows on the device, its tables filled without a loop over heads."""

from __future__ import annotations

import dataclasses

import torch

from benchmarks.gpu.sizes import Sizes
from kvstore.kernels.retain.kernel import FreePages


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Pages of `rows` int32 `[B, L, H]`, in the layout that the kernels' contracts give."""

    keys: torch.Tensor
    values: torch.Tensor
    pages: torch.Tensor
    rows: torch.Tensor
    slots: torch.Tensor
    free: FreePages

    @property
    def row_count(self) -> int:
        """Rows there is room for."""
        return self.keys.shape[0]

    @property
    def layers(self) -> int:
        return self.rows.shape[1]


def fill(rows: torch.Tensor, sizes: Sizes, spare_pages: int = 0) -> Pool:
    """`rows` int32 `[B, L, H]` on the device; every head's table has one page to grow into."""
    page_counts = (rows + sizes.page_rows - 1) // sizes.page_rows
    ends = page_counts.flatten().cumsum(0)
    held = int(ends[-1])
    order = torch.randperm(held + spare_pages, device=rows.device).int()
    number = torch.arange(int(page_counts.max()) + 1, device=rows.device)
    begins = (ends.view(rows.shape) - page_counts)[..., None]
    place = (begins + number).clamp_(max=order.numel() - 1)
    pages = torch.where(number < page_counts[..., None], order[place], -1)
    size = (2, order.numel() * sizes.page_rows, sizes.head_size)
    keys, values = torch.randn(size, device=rows.device, dtype=sizes.dtype)
    slots = torch.arange(rows.shape[0], dtype=torch.int32, device=rows.device)
    free = FreePages.of(order.numel(), order[held:])
    return Pool(keys, values, pages.int().contiguous(), rows.clone(), slots, free)

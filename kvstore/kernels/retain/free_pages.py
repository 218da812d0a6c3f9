"""Free pages, as a queue on the device that programs take from and return to."""

from __future__ import annotations

import dataclasses

import torch
import triton
import triton.language as tl

from kvstore.kernels.retain.arguments import FreeQueue


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class FreePages:
    """Free pages, as a queue on the device.

    The free pages are the entries `taken` to `returned` − 1 of `ring` int32 `[pages]`, taken round;
    both counters (int64 `[1]`) only grow. Pages that a launch returns can be taken from the next
    launch on. The caller's reservations ensure that there are enough. If there are too few,
    `exhausted` int32 `[1]` becomes 1, the head that asked stays unchanged, and the queue must not
    be used again.
    """

    ring: torch.Tensor
    taken: torch.Tensor
    returned: torch.Tensor
    exhausted: torch.Tensor

    @classmethod
    def of(cls, pages: int, free: torch.Tensor) -> FreePages:
        """Return the queue of a pool of so many pages; `free` int32 are taken first to last."""
        ring = free.new_full((pages,), -1)
        ring[: free.numel()] = free
        none = torch.zeros(1, dtype=torch.int64, device=free.device)
        return cls(ring, none, none + free.numel(), none.to(torch.int32))

    def arguments(self) -> FreeQueue:
        """Return the queue as an argument of kernels."""
        # pages that this launch returns cannot be taken yet
        fence = self.returned.clone()
        ring = self.ring
        return FreeQueue(ring, ring.numel(), self.taken, self.returned, fence, self.exhausted)


def append_pages(
    free_rows: FreePages, free_metadata: FreePages, pages: torch.Tensor, rows: int, metadata: int
) -> None:
    """Append pages to both queues: `pages` int32, so many of rows, then so many of metadata."""
    _append[(2,)](
        pages,
        rows,
        metadata,
        free_rows.ring,
        free_rows.returned,
        free_rows.ring.numel(),
        free_metadata.ring,
        free_metadata.returned,
        free_metadata.ring.numel(),
        BLOCK=1024,
    )


@triton.jit(do_not_specialize=["rows", "metadata"])
def _append(
    pages: tl.tensor,
    rows: int,
    metadata: int,
    ring: tl.tensor,
    returned: tl.tensor,
    capacity: int,
    metadata_ring: tl.tensor,
    metadata_returned: tl.tensor,
    metadata_capacity: int,
    BLOCK: tl.constexpr,
) -> None:
    """Program (queue)."""
    if tl.program_id(0) == 0:
        _append_to(ring, returned, capacity, pages, rows, BLOCK)
    else:
        _append_to(
            metadata_ring, metadata_returned, metadata_capacity, pages + rows, metadata, BLOCK
        )


@triton.jit
def _append_to(
    ring: tl.tensor,
    returned: tl.tensor,
    capacity: int,
    pages: tl.tensor,
    count: int,
    BLOCK: tl.constexpr,
) -> None:
    first = tl.load(returned)
    for begin in range(0, count, BLOCK):
        number = begin + tl.arange(0, BLOCK)
        page = tl.load(pages + number, mask=number < count, other=0)
        tl.store(ring + (first + number) % capacity, page, mask=number < count)
    tl.debug_barrier()
    tl.store(returned, first + count)


@triton.jit
def take_pages(table: tl.tensor, have: tl.tensor, need: tl.tensor, free: FreeQueue) -> tl.tensor:
    """Extend a head's table to `need` pages; return 1, or 0 if there are too few free pages."""
    enough = 1
    if need > have:
        first = tl.atomic_add(free.taken, (need - have).to(tl.int64))
        if first + need - have > tl.load(free.fence):
            tl.store(free.exhausted, 1)
            enough = 0
        else:
            for page in range(have, need):
                number = tl.load(free.ring + (first + page - have) % free.capacity)
                tl.store(table + page, number)
    return enough


@triton.jit
def return_pages(table: tl.tensor, have: tl.tensor, need: tl.tensor, free: FreeQueue) -> None:
    """Shorten a head's table to `need` pages and return the others to the queue."""
    if have > need:
        first = tl.atomic_add(free.returned, (have - need).to(tl.int64))
        for page in range(need, have):
            number = tl.load(table + page)
            tl.store(free.ring + (first + page - need) % free.capacity, number)

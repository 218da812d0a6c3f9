"""Pages nobody holds, as a queue on the device that programs take from and give back to."""

from __future__ import annotations

import dataclasses

import torch
import triton
import triton.language as tl


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class FreePages:
    """Pages nobody holds, a queue on the device.

    They are the entries `taken` to `returned` − 1 of `ring` int32 `[pages]`, taken round; both
    counters (int64 `[1]`) only grow. Pages given back by a launch can be taken from the next one
    on. The caller's reservations see to it that there are enough. Should they not, `exhausted`
    int32 `[1]` becomes 1, the head that asked stays as it was, and the queue is not fit for use.
    """

    ring: torch.Tensor
    taken: torch.Tensor
    returned: torch.Tensor
    exhausted: torch.Tensor

    @classmethod
    def of(cls, pages: int, free: torch.Tensor) -> FreePages:
        """A pool of so many pages, of which `free` int32 are taken first to last."""
        ring = free.new_full((pages,), -1)
        ring[: free.numel()] = free
        none = torch.zeros(1, dtype=torch.int64, device=free.device)
        return cls(ring, none, none + free.numel(), none.to(torch.int32))

    def arguments(self) -> tuple[torch.Tensor | int, ...]:
        """What a kernel takes of it: ring, capacity, taken, returned, fence and exhausted."""
        # what is given back meanwhile cannot be taken yet
        fence = self.returned.clone()
        return self.ring, self.ring.numel(), self.taken, self.returned, fence, self.exhausted


@triton.jit
def take_pages(
    table: tl.tensor,
    have: tl.tensor,
    need: tl.tensor,
    ring: tl.tensor,
    capacity: int,
    taken: tl.tensor,
    fence: tl.tensor,
    exhausted: tl.tensor,
) -> tl.tensor:
    """Extend a head's table to `need` pages; 1, or 0 if there are not so many."""
    enough = 1
    if need > have:
        first = tl.atomic_add(taken, (need - have).to(tl.int64))
        if first + need - have > tl.load(fence):
            tl.store(exhausted, 1)
            enough = 0
        else:
            for page in range(have, need):
                tl.store(table + page, tl.load(ring + (first + page - have) % capacity))
    return enough


@triton.jit
def give_back_pages(
    table: tl.tensor,
    have: tl.tensor,
    need: tl.tensor,
    ring: tl.tensor,
    capacity: int,
    returned: tl.tensor,
) -> None:
    """Shorten a head's table to `need` pages."""
    if have > need:
        first = tl.atomic_add(returned, (have - need).to(tl.int64))
        for page in range(need, have):
            tl.store(ring + (first + page - need) % capacity, tl.load(table + page))

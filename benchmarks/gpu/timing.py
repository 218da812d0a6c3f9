"""How long a call takes on a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


class Timer:
    """Times calls on one device, each with a second-level cache that holds nothing of theirs."""

    def __init__(self, device: torch.device, flush_bytes: int, repeats: int) -> None:
        self.device = device
        self._repeats = repeats
        self._other = torch.empty(flush_bytes, dtype=torch.uint8, device=device)

    def seconds(self, call: Callable[[], object]) -> float:
        """The median over the repeats, after calls to compile and settle."""
        for _ in range(self._repeats // 10):
            call()
        return statistics.median(self._once(call) for _ in range(self._repeats))

    def _once(self, call: Callable[[], object]) -> float:
        self._other.fill_(1)
        if self.device.type != "cuda":
            begin = time.perf_counter()
            call()
            return time.perf_counter() - begin
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        call()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1e3

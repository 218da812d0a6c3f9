"""Timing of calls on a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


class Timer:
    """Times calls on one device.

    Before each, other memory is read: the second-level cache holds nothing of theirs then, nor
    anything that it must write back meanwhile. That takes a device .4 ms for 2 GiB, so that
    it begins a call only once the host has asked for all of it, as where steps are captured or the
    host runs ahead.
    """

    def __init__(self, device: torch.device, flush_bytes: int, repeats: int) -> None:
        self.device = device
        self._repeats = repeats
        self._other = torch.zeros(flush_bytes // 4, device=device)

    @property
    def calls(self) -> int:
        """The number of calls that `seconds` makes."""
        return self._repeats + self._repeats // 10

    def seconds(self, call: Callable[[], object]) -> float:
        """The median over the repeats, after calls to compile and settle."""
        for _ in range(self._repeats // 10):
            call()
        return statistics.median(self._once(call) for _ in range(self._repeats))

    def _once(self, call: Callable[[], object]) -> float:
        self._other.sum()
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

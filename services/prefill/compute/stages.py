"""Time of a prefill by stage."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator

import torch


class StageClock:
    """Seconds by stage. The time inside nested stages counts for the innermost one only.

    The host only asks a CUDA device for work and runs ahead of it. There the stages are marked by
    events on the current stream, and the device is asked once, when seconds are read.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._on_cuda = device is not None and device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._stack: list[str] = []
        self._mark = time.perf_counter()
        # each ends a piece of the stage beside it, and begins the next piece
        self._events: list[tuple[str, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time until the block ends to stage `name`."""
        self._charge()
        self._stack.append(name)
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()

    def seconds(self, name: str) -> float:
        """Return the seconds of a stage; on a CUDA device, once its work so far is done."""
        self._read_events()
        return self._seconds.get(name, 0.0)

    def _charge(self) -> None:
        stage = self._stack[-1] if self._stack else ""
        if self._on_cuda:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._events.append((stage, event))
            return
        now = time.perf_counter()
        if stage:
            self._add(stage, now - self._mark)
        self._mark = now

    def _read_events(self) -> None:
        """Add up what lies between the events; the last of them stays, as the next beginning."""
        if len(self._events) < 2:
            return
        self._events[-1][1].synchronize()
        for (_, begin), (stage, end) in itertools.pairwise(self._events):
            if stage:
                self._add(stage, begin.elapsed_time(end) / 1e3)
        del self._events[:-1]

    def _add(self, stage: str, seconds: float) -> None:
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds

"""Copies of a device's memory to the host that are read once they are needed."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Download:
    """A tensor on its way to the host; the device's memory may change once it was begun."""

    _target: torch.Tensor
    _done: torch.cuda.Event | None

    @classmethod
    def begin(cls, source: torch.Tensor) -> Download:
        """Copy what the current stream computes until now."""
        if not source.is_cuda:
            return cls(source.clone(), None)
        target = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
        target.copy_(source, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()
        return cls(target, done)

    def read(self) -> NDArray[Any]:
        """Wait for the copy alone, and return it; later work of the device goes on."""
        if self._done is not None and not self._done.query():  # type: ignore[no-untyped-call]
            self._done.synchronize()
        values: NDArray[Any] = self._target.numpy()
        return values

"""Copies of host memory to a device that the host does not wait for."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

# a copy may still be on its way while the next one is written
_BUFFERS = 2
_LEAST_BYTES = 4096


class Uploads:
    """Copies bytes through pinned buffers, into memory of the device that the next copy reuses.

    The result of a copy is for work on the current stream, asked for before the next copy. On a
    device other than CUDA memory is copied as usual.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._on_cuda = device.type == "cuda"
        self._turn = 0
        self._events = [_event() for _ in range(_BUFFERS)] if self._on_cuda else []
        self._allocate(_LEAST_BYTES)

    def copy(self, values: NDArray[np.generic]) -> torch.Tensor:
        """Return the bytes of an array on the device, uint8 `[bytes]`."""
        size = values.nbytes
        if size > self._target.numel():
            self._allocate(1 << (size - 1).bit_length())
        self._turn = (self._turn + 1) % _BUFFERS
        buffer, target = self._buffers[self._turn][:size], self._target[:size]
        if self._on_cuda:
            event = self._events[self._turn]
            if not event.query():  # type: ignore[no-untyped-call]
                event.synchronize()
        buffer.numpy()[...] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        target.copy_(buffer, non_blocking=True)
        if self._on_cuda:
            event.record()
        return target

    def _allocate(self, size: int) -> None:
        # the allocator of pinned memory waits for the copies out of a buffer that goes
        self._buffers = [
            torch.empty(size, dtype=torch.uint8, pin_memory=self._on_cuda) for _ in range(_BUFFERS)
        ]
        self._target = torch.empty(size, dtype=torch.uint8, device=self._device)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]

"""Moves compacted layers to host memory while the device computes the next ones."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import torch

from kvstore.cache import RaggedLayer

# layers in pinned memory that are not yet emitted; their rows are still held on the device
_MOST_UNDERWAY = 2


class Shipping:
    """A context that emits layers in host memory, in order; all are emitted when it ends.

    Layers in host memory are emitted at once. Layers on a CUDA device are copied on a stream of
    their own, and emitted by a thread. `add` raises what `emit` raised for an earlier layer.
    """

    def __init__(self, emit: Callable[[RaggedLayer], None]) -> None:
        self._emit = emit
        self._underway: collections.deque[Future[None]] = collections.deque()
        self._stream: torch.cuda.Stream | None = None
        self._executor: ThreadPoolExecutor | None = None

    def __enter__(self) -> Shipping:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown()
        if error is None:
            self._wait_for(0)

    def add(self, layer: RaggedLayer) -> None:
        """Emit the layer after the earlier ones; wait while too many are underway."""
        if not layer.keys.is_cuda:
            self._emit(layer)
            return
        if self._executor is None or self._stream is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="ship")
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._wait_for(_MOST_UNDERWAY - 1)
        copy = _Copy.begin(layer, self._stream)
        self._underway.append(self._executor.submit(lambda: self._emit(copy.finish())))

    def _wait_for(self, underway: int) -> None:
        while len(self._underway) > underway:
            self._underway.popleft().result()


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Copy:
    """A layer on its way to pinned memory, which holds its tensors once `done`."""

    layer: RaggedLayer
    pinned: dict[str, torch.Tensor]
    done: torch.cuda.Event

    @classmethod
    def begin(cls, layer: RaggedLayer, stream: torch.cuda.Stream) -> _Copy:
        """Copy on the stream what the current one has computed until now."""
        pinned: dict[str, torch.Tensor] = {}
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for field in dataclasses.fields(layer):
                value = getattr(layer, field.name)
                if isinstance(value, torch.Tensor):
                    target = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
                    pinned[field.name] = target.copy_(value, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(stream)
        return cls(layer, pinned, done)

    def finish(self) -> RaggedLayer:
        """Wait for the copy; return the layer in memory that is not pinned, for stores keep it."""
        self.done.synchronize()
        tensors: dict[str, Any] = {name: part.clone() for name, part in self.pinned.items()}
        return dataclasses.replace(self.layer, **tensors)

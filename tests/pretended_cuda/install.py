"""Installs the pretended device instead of the real one, for all threads."""

from __future__ import annotations

import contextlib
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.nn.attention import varlen
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext, _device_constructors
from triton.runtime import interpreter

from tests.pretended_cuda.flash import flash_attention
from tests.pretended_cuda.recording import Launches, Recording, plainly
from tests.pretended_cuda.tensors import (
    DeviceTensor,
    PinnedTensor,
    Transfers,
    moved,
    on_device,
    waits,
)

_EMPTY = ("empty", "empty_strided")
_FILLED = ("zeros", "ones", "full", "arange", "rand", "randn", "randint", "randperm", "linspace")
# out of the host's memory
_GIVEN = ("tensor", "as_tensor")


class PretendedGraph:
    """Replays at the addresses of its capture."""

    def __init__(self) -> None:
        self.recording = Recording()

    def replay(self) -> None:
        Launches.count += 1
        self.recording.replay()


class _Generator(torch.Generator):
    def __new__(cls, device: torch.device | str = "cpu") -> _Generator:
        return super().__new__(cls)


class _Event:
    """An event of a clock that counts one second per question."""

    def __init__(self, **_: Any) -> None:
        self._transfers = 0

    def record(self, _: object = None) -> None:
        self._transfers = Transfers.begun

    def wait(self, _: object = None) -> None: ...

    def query(self) -> bool:
        return Transfers.ended >= self._transfers

    def synchronize(self) -> None:
        waits("synchronize")
        Transfers.end(self._transfers)

    def elapsed_time(self, _: _Event) -> float:
        return 1e3


class _Stream:
    def wait_stream(self, _: object) -> None: ...

    def wait_event(self, _: object) -> None: ...

    def synchronize(self) -> None:
        _synchronize()


def _synchronize(_: object = None) -> None:
    waits("synchronize")
    Transfers.end(Transfers.begun)


@contextlib.contextmanager
def pretended_cuda() -> Iterator[None]:
    """Make `cuda` a device inside the context."""
    # remembered from the first call on
    _device_constructors()
    with pytest.MonkeyPatch.context() as patch:
        for name in (*_EMPTY, *_FILLED, *_GIVEN):
            patch.setattr(torch, name, _placed(getattr(torch, name), is_given=name in _GIVEN))
        for name in ("to", "cuda"):
            patch.setattr(torch.Tensor, name, _mover(getattr(torch.Tensor, name)))
        patch.setattr(torch.Tensor, "pin_memory", _pinned)
        patch.setattr(torch, "Generator", _Generator)
        patch.setattr(interpreter.InterpretedFunction, "run", _launcher())
        patch.setattr(varlen, "varlen_attn", flash_attention)
        for name, value in _cuda().items():
            patch.setattr(torch.cuda, name, value)
        yield


def _placed(factory: Callable[..., Any], *, is_given: bool) -> Callable[..., Any]:
    def made(*args: Any, device: Any = None, pin_memory: bool = False, **kwargs: Any) -> Any:
        if pin_memory:
            return plainly(factory, *args, **kwargs).as_subclass(PinnedTensor)
        device = _of_context() if device is None else device
        if device is not None:
            kwargs["device"] = device
        if device is None or torch.device(device).type != "cuda":
            return factory(*args, **kwargs)
        if is_given:
            waits(factory.__name__)
        kwargs["device"] = "cpu"
        return Recording.of_thread_does(factory, args, kwargs, on_device)

    made.__name__ = factory.__name__
    return made


def _pinned(tensor: torch.Tensor, *_: object) -> torch.Tensor:
    return plainly(torch.Tensor.clone, tensor).as_subclass(PinnedTensor)


def _of_context() -> torch.device | None:
    """Return the device of the innermost `with torch.device(...)`."""
    modes = reversed(_get_current_function_mode_stack())
    return next((mode.device for mode in modes if isinstance(mode, DeviceContext)), None)


def _mover(method: Any) -> Callable[..., Any]:
    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        named = (*args, kwargs.get("device"))
        there = any(_names_cuda(value) for value in named) or method.__name__ == "cuda"
        if not there and not isinstance(self, DeviceTensor):
            return method(self, *args, **kwargs)
        return moved(method, (self, *args), kwargs)

    to.__name__ = method.__name__
    return to


def _names_cuda(value: Any) -> bool:
    if isinstance(value, DeviceTensor):
        return True
    return isinstance(value, (str, torch.device)) and torch.device(value).type == "cuda"


def _launcher() -> Callable[..., Any]:
    own = interpreter.InterpretedFunction.run
    # the interpreter has one program at a time
    alone = threading.Lock()

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        tensors = [part for part in (*args, *kwargs.values()) if isinstance(part, torch.Tensor)]
        on_host = [part for part in tensors if not isinstance(part, DeviceTensor)]
        if on_host and len(on_host) < len(tensors):
            raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
        recording = Recording.of_thread()
        Launches.count += recording is None
        if recording is not None:

            def again(*args: Any, **kwargs: Any) -> None:
                with alone:
                    own(self, *args, grid=grid, warmup=False, **kwargs)

            return recording.launch(again, args, kwargs)
        with alone:
            return plainly(own, self, *args, grid=grid, warmup=warmup, **kwargs)

    return run


def _cuda() -> dict[str, Any]:
    properties = types.SimpleNamespace(multi_processor_count=1, total_memory=1 << 34)

    @contextlib.contextmanager
    def graph(which: PretendedGraph, **_: Any) -> Iterator[None]:
        with which.recording:
            yield

    return {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: "pretended",
        "get_device_capability": lambda *_: (9, 0),
        "get_device_properties": lambda *_: properties,
        "Event": _Event,
        "Stream": _Stream,
        "current_stream": lambda *_: _Stream(),
        "stream": lambda _: contextlib.nullcontext(),
        "synchronize": _synchronize,
        "CUDAGraph": PretendedGraph,
        "graph": graph,
    }

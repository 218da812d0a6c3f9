"""Content of a captured graph: operations, and the addresses of their operands."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves, tree_map

_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "matmul")
_OPERATORS = {"__setitem__", *(f"__i{name}__" for name in _BINARY)}


def plainly(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The function itself, of memory that the host has."""
    with torch._C.DisableTorchFunctionSubclass():
        return function(*args, **kwargs)


class CaptureRefused(RuntimeError):
    """CUDA's error for an operation that a graph cannot contain."""


class Launches:
    """Count of what the host asks the device for: kernels, copies, and replays of graphs."""

    count = 0


@dataclasses.dataclass(frozen=True, slots=True)
class _Elsewhere:
    """A tensor from before the capture: an address, which does not keep what lies there."""

    storage: StorageWeakRef
    like: Callable[[Any], torch.Tensor]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> _Elsewhere:
        kind, dtype = type(tensor), tensor.dtype
        layout = tensor.storage_offset(), tensor.shape, tensor.stride()

        def like(storage: Any) -> torch.Tensor:
            return torch.empty(0, dtype=dtype).set_(storage, *layout).as_subclass(kind)

        return cls(StorageWeakRef(tensor.untyped_storage()), like)

    def found(self) -> torch.Tensor:
        storage = torch.UntypedStorage._new_with_weak_ptr(self.storage.cdata)
        if storage is None:
            raise CaptureRefused("a graph is replayed whose operands are gone")
        return self.like(storage)


@dataclasses.dataclass(frozen=True, slots=True)
class _Operation:
    function: Callable[..., Any]
    args: Any
    kwargs: Any
    results: Any


class Recording:
    """Operations that were asked for and not done; `replay` does them."""

    _capturing = threading.local()

    def __init__(self) -> None:
        self._operations: list[_Operation] = []
        self._own: set[int] = set()

    @classmethod
    def of_thread(cls) -> Recording | None:
        return getattr(cls._capturing, "recording", None)

    @classmethod
    def refuses(cls, what: str) -> None:
        if cls.of_thread() is not None:
            raise CaptureRefused(f"operation not permitted when stream is capturing: {what}")

    @classmethod
    def of_thread_does(
        cls,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        converted: Callable[[Any], Any],
    ) -> Any:
        """Do it, its results `converted`; or only record it where this thread captures."""
        recording = cls.of_thread()
        if recording is None:
            results = converted(plainly(function, *args, **kwargs))
            Launches.count += _asks(function, args, kwargs, results)
            return results
        return recording._record(function, args, kwargs, converted)

    def __enter__(self) -> Recording:
        assert self.of_thread() is None, "captures do not nest"
        self._capturing.recording = self
        return self

    def __exit__(self, *_: object) -> None:
        self._capturing.recording = None

    def launch(self, run: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """A kernel, which changes its operands."""
        self._add(run, args, kwargs, None)

    @torch.inference_mode()
    def replay(self) -> None:
        """Replay as the device does: without Python code, with the numbers of the capture."""
        for operation in self._operations:
            args, kwargs = (
                tree_map(_found, given, is_leaf=_is_elsewhere)
                for given in (operation.args, operation.kwargs)
            )
            again = plainly(operation.function, *args, **kwargs)
            for old, new in zip(_tensors(operation.results), _tensors(again), strict=False):
                plainly(_replace, old, new)

    def _record(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        converted: Callable[[Any], Any],
    ) -> Any:
        if _changes(function, kwargs):
            self._add(function, args, kwargs, None)
            return kwargs.get("out", args[0] if args else None)
        results = converted(plainly(function, *args, **kwargs))
        given = {_place(part) for part in _tensors((args, kwargs))}
        made = [part for part in _tensors(results) if _place(part) not in given]
        if made:
            self._add(function, args, kwargs, results)
            self._own.update(map(_place, made))
        return results

    def _add(self, function: Callable[..., Any], args: Any, kwargs: Any, results: Any) -> None:
        operation = _Operation(function, self._addresses(args), self._addresses(kwargs), results)
        self._operations.append(operation)

    def _addresses(self, given: Any) -> Any:
        return tree_map(self._address, given)

    def _address(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or _place(value) in self._own:
            return value
        return plainly(_Elsewhere.of, value)


def _changes(function: Callable[..., Any], kwargs: dict[str, Any]) -> bool:
    """Whether it writes to what it is given."""
    name = function.__name__
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name in _OPERATORS or "out" in kwargs


def _asks(function: Callable[..., Any], args: Any, kwargs: dict[str, Any], results: Any) -> bool:
    """Whether an operation works on data, and is no view or new memory alone."""
    if function.__name__.startswith(("empty", "new_empty")):
        return False
    given = {_place(part) for part in _tensors((args, kwargs))}
    return _changes(function, kwargs) or any(_place(p) not in given for p in _tensors(results))


def _place(tensor: torch.Tensor) -> int:
    return plainly(torch.Tensor.untyped_storage, tensor)._cdata


def _replace(old: torch.Tensor, new: torch.Tensor) -> None:
    """Have what a result was hold what it is now, where that is not the same memory."""
    if old.data_ptr() != new.data_ptr():
        old.copy_(new)


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _is_elsewhere(value: Any) -> bool:
    return isinstance(value, _Elsewhere)


def _found(value: Any) -> Any:
    return value.found() if isinstance(value, _Elsewhere) else value

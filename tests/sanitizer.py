"""Watches what interpreted kernels do to memory, as a device with many threads would take it.

The interpreter runs one program after another and each operation as a whole, so that it hides what
a device shows: programs that touch what others write, and threads of one program that read what
others of it wrote, or are still to read, without a barrier between. Every byte that a launch may
touch is shadowed by who touched it last. Raises `Unsound` from the launch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils._pytree import tree_leaves
from triton.runtime import interpreter

_NO_PROGRAM, _SEVERAL = 0, -1


class Unsound(Exception):
    """A kernel's access that a device may answer differently each time, or not at all."""


class Sanitizer:
    """The accesses of the launch that runs.

    Programs are numbered from 1; an epoch ends at each barrier and with each program. Reading what
    another thread wrote in the same epoch is told, and writing twice; writing what was read is
    not, where the same element of an equally large tensor is both, because it depends on what it
    replaces.
    """

    def __init__(self) -> None:
        self.accesses = 0
        self.barriers = 0
        self._starts: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._begin([])

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Watch from now on."""
        builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
        own: dict[str, Callable[..., Any]] = {
            name: getattr(owner, name)
            for owner, name in (
                (executor, "_init_args_hst"),
                (builder, "set_grid_idx"),
                (builder, "create_masked_load"),
                (builder, "create_masked_store"),
                (builder, "create_atomic_rmw"),
            )
        }

        def launch(this: Any, given: Any, named: Any) -> Any:
            found = own["_init_args_hst"](this, given, named)
            self._begin([leaf for leaf in tree_leaves(found) if _is_tensor(leaf)])
            return found

        def program(this: Any, *at: int) -> None:
            self._program += 1
            self._epoch += 1
            own["set_grid_idx"](this, *at)

        def barrier(_: Any) -> None:
            self.barriers += 1
            self._epoch += 1

        def load(this: Any, pointers: Any, mask: Any, *others: Any) -> Any:
            self._load(_Access.of(pointers, mask))
            return own["create_masked_load"](this, pointers, mask, *others)

        def store(this: Any, pointers: Any, value: Any, mask: Any, *others: Any) -> Any:
            self._store(_Access.of(pointers, mask), value.data)
            return own["create_masked_store"](this, pointers, value, mask, *others)

        def atomic(this: Any, operation: Any, pointers: Any, value: Any, *others: Any) -> Any:
            self._atomic(_Access.of(pointers, others[0]))
            return own["create_atomic_rmw"](this, operation, pointers, value, *others)

        monkeypatch.setattr(executor, "_init_args_hst", launch)
        monkeypatch.setattr(builder, "set_grid_idx", program)
        monkeypatch.setattr(builder, "create_barrier", barrier)
        monkeypatch.setattr(builder, "create_masked_load", load)
        monkeypatch.setattr(builder, "create_masked_store", store)
        monkeypatch.setattr(builder, "create_atomic_rmw", atomic)

    def _begin(self, tensors: list[torch.Tensor]) -> None:
        storages = {}
        for tensor in tensors:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        bases = sorted(storages)
        self._bases = np.array(bases, np.uint64)
        ends = np.cumsum([storages[base] for base in bases], dtype=np.int64)
        self._firsts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        size = int(ends[-1]) if bases else 0
        self._program = self._epoch = 0
        self._given = np.zeros(size, np.bool_)
        for tensor in tensors:
            first = int(self._places(np.array([tensor.data_ptr()], np.uint64))[0])
            self._given[first : first + _extent(tensor)] = True
        self._writer, self._reader = np.zeros((2, size), np.int32)
        self._written, self._read = np.zeros((2, size), np.int32)
        self._lane = np.zeros(size, np.int64)

    def _places(self, addresses: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return where in the shadow these bytes are."""
        if not self._bases.size:
            raise Unsound("memory is touched and none was given")
        number = np.searchsorted(self._bases, addresses, side="right") - 1
        number = np.maximum(number, 0)
        offset = addresses.astype(np.int64) - self._bases[number].astype(np.int64)
        return self._firsts[number] + offset

    def _bytes(self, access: _Access) -> NDArray[np.int64]:
        """`[n, width]`, all within what the launch was given."""
        self.accesses += 1
        first = self._places(access.addresses)
        last = first + access.width - 1
        inside = (first >= 0) & (last < self._given.size)
        inside &= self._places(access.addresses + np.uint64(access.width - 1)) == last
        if not inside.all() or not (self._given[first].all() and self._given[last].all()):
            raise Unsound("out of bounds")
        return first[:, None] + np.arange(access.width)

    def _load(self, access: _Access) -> None:
        if not access.addresses.size:
            return
        at = self._bytes(access)
        writer = self._writer[at]
        if ((writer != _NO_PROGRAM) & (writer != self._program)).any():
            raise Unsound("reads what another program writes")
        if (self._written[at] == self._epoch).any():
            raise Unsound("reads what was written without a barrier between")
        known = self._reader[at]
        alone = (known == _NO_PROGRAM) | (known == self._program)
        self._reader[at] = np.where(alone, self._program, _SEVERAL)
        self._read[at] = self._epoch
        self._lane[at] = access.lanes[:, None]

    def _store(self, access: _Access, value: NDArray[Any]) -> None:
        if not access.addresses.size:
            return
        at = self._bytes(access)
        values = np.broadcast_to(value, access.shape).reshape(-1)[access.numbers]
        order = np.argsort(access.addresses, kind="stable")
        again = np.diff(access.addresses[order]) == 0
        bits = np.ascontiguousarray(values[order]).view(f"u{values.itemsize}")
        if (again & (np.diff(bits) != 0)).any():
            raise Unsound("two threads write different values to one place")
        writer, reader = self._writer[at], self._reader[at]
        others = (writer != _NO_PROGRAM) & (writer != self._program)
        others |= (reader != _NO_PROGRAM) & (reader != self._program)
        if others.any() and not access.holds(values, others.any(1)):
            raise Unsound("writes what another program reads or writes")
        if (self._written[at] == self._epoch).any():
            raise Unsound("writes twice without a barrier between")
        replaces = (self._lane[at] == access.lanes[:, None]) & (access.count > 1)
        if ((self._read[at] == self._epoch) & ~replaces).any():
            raise Unsound("writes what other threads may still have to read")
        self._writer[at] = self._program
        self._written[at] = self._epoch

    def _atomic(self, access: _Access) -> None:
        """Record an atomic access, which excludes all other accesses of the same bytes."""
        if access.addresses.size:
            at = self._bytes(access)
            if (self._writer[at] > _NO_PROGRAM).any() or (self._reader[at] != _NO_PROGRAM).any():
                raise Unsound("is both atomic and not")
            self._writer[at] = _SEVERAL


class _Access:
    """The elements that one operation touches: numbers of those in the tensor, and addresses."""

    def __init__(self, pointers: NDArray[np.uint64], mask: NDArray[np.bool_], width: int) -> None:
        self.shape = pointers.shape
        self.count = pointers.size
        self.width = width
        self.numbers = np.flatnonzero(np.broadcast_to(mask, pointers.shape))
        self.addresses = pointers.reshape(-1)[self.numbers]
        # different of tensors of different sizes
        self.lanes = self.numbers + (self.count << 32)

    @classmethod
    def of(cls, pointers: Any, mask: Any) -> _Access:
        width = max(8, pointers.get_element_ty().primitive_bitwidth) // 8
        return cls(pointers.data, mask.data, width)

    def holds(self, values: NDArray[Any], which: NDArray[np.bool_]) -> bool:
        """Whether those places have these values already, so that writing changes nothing."""
        addresses, wanted = self.addresses[which], values[which]
        everywhere = np.ones(wanted.shape, np.bool_)
        found = interpreter._interpreter.load(
            addresses, everywhere, np.zeros_like(wanted), wanted.dtype
        )
        return bool((found == wanted).all())


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.numel() > 0


def _extent(tensor: torch.Tensor) -> int:
    """Bytes from the first element to the end of the last."""
    steps = (
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return (sum(steps) + 1) * tensor.itemsize

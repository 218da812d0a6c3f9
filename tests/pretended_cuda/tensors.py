"""Tensors that say they are on a CUDA device, and what a device refuses of them."""

from __future__ import annotations

import collections
import threading
from typing import Any, ClassVar

import torch
from torch.utils._pytree import tree_leaves, tree_map

from tests.pretended_cuda.recording import Launches, Recording, plainly

CUDA = torch.device("cuda", 0)
# methods of tensors that copy data to the host, which waits for it
_READS = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "equal", "cpu"}
# and whose shape depends on data
_READS |= {"nonzero", "masked_select", "unique", "unique_consecutive", "argwhere", "allclose"}
_COPIES = {"to", "cpu", "cuda"}
# what takes a tensor of the host's, too
_TAKES = {"copy_", "__getitem__", "__setitem__"}
# the method before a test replaces it
_to = torch.Tensor.to
# what host memory holds while a copy into it may still be on its way
_ON_ITS_WAY = 255


class DeviceTensor(torch.Tensor):
    """A tensor on the pretended device; its data lies in host memory."""

    @property
    def device(self) -> torch.device:
        return CUDA

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_cpu(self) -> bool:
        return False

    def get_device(self) -> int:
        return 0

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __array__(self, *_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __deepcopy__(self, memo: dict[int, Any]) -> DeviceTensor:
        copy: DeviceTensor = plainly(
            torch.Tensor.as_subclass, plainly(torch.Tensor.clone, self.detach()), DeviceTensor
        )
        copy._is_param = getattr(self, "_is_param", False)
        return copy

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "__get__" or name == "__set__":
            return on_device(plainly(func, *args, **given))
        if func is torch._has_compatible_shallow_copy_type:
            # a module's parameter is replaced by one on another device
            return isinstance(args[0], cls) == isinstance(args[1], cls)
        if name in _COPIES:
            return moved(func, args, given)
        if name == "record_stream":
            return None
        if name == "copy_" and _is_overlapped(args, given):
            return Transfers.begin(*args[:2])
        _refuse_mixed(name, args, given)
        if name in _READS or (name in ("__getitem__", "__setitem__") and _chooses(args[1])):
            waits(name)
        target = given.pop("device", CUDA)
        if torch.device(target).type != "cuda":
            return plainly(func, *args, **given)
        return Recording.of_thread_does(func, args, given, on_device)


class PinnedTensor(torch.Tensor):
    """Host memory that the device reads and writes while the host goes on."""

    def is_pinned(self, *_: Any) -> bool:
        return True

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(issubclass(kind, DeviceTensor) for kind in types):
            return NotImplemented
        given = [part for part in tree_leaves((args, kwargs)) if isinstance(part, PinnedTensor)]
        memory = {plainly(torch.Tensor.untyped_storage, part)._cdata for part in given}
        results = plainly(func, *args, **(kwargs or {}))

        def as_given(result: Any) -> Any:
            """Only what lies in the same memory is pinned."""
            is_view = _is_tensor(result) and result.untyped_storage()._cdata in memory
            return result.as_subclass(PinnedTensor) if is_view else result

        return tree_map(as_given, results)


class Transfers:
    """Copies into pinned memory that no event has been waited for; their target is not to be read.

    Copies out of it are done at once.
    """

    _pending: ClassVar[list[tuple[torch.Tensor, torch.Tensor]]] = []
    _alone = threading.Lock()
    begun = 0
    ended = 0

    @classmethod
    def begin(cls, target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        Recording.refuses("copy_ of pinned memory")
        Launches.count += 1
        if isinstance(target, DeviceTensor):
            plainly(torch.Tensor.copy_, target, source)
        else:
            copy = plainly(_to, source, target.dtype, copy=True)
            plainly(lambda: target.view(torch.uint8).fill_(_ON_ITS_WAY))
            with cls._alone:
                cls._pending.append((target, copy))
                cls.begun += 1
        return target

    @classmethod
    def end(cls, until: int) -> None:
        """End the copies that were begun before the count was `until`."""
        with cls._alone, torch.inference_mode():
            while cls.ended < until:
                target, copy = cls._pending.pop(0)
                plainly(torch.Tensor.copy_, target, copy)
                cls.ended += 1


def on_device(result: Any) -> Any:
    """The same, every tensor in it on the device."""

    def converted(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and not isinstance(value, DeviceTensor):
            return plainly(torch.Tensor.as_subclass, value, DeviceTensor)
        return value

    if isinstance(result, (torch.Tensor, tuple, list)):
        return tree_map(converted, result)
    return result


def moved(func: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
    """`to`, `cpu` and `cuda` of any tensor; another device's memory is always another."""
    source, *rest = args
    is_there = isinstance(source, DeviceTensor)
    overlapped = isinstance(source, PinnedTensor) and bool(given.get("non_blocking"))
    goes_there, rest, given = _destination(func, is_there, rest, given)
    if goes_there == is_there:
        # a copy at most, which a graph can hold
        return Recording.of_thread_does(
            _to, (source, *rest), given, on_device if is_there else _as_it_is
        )
    if overlapped:
        Recording.refuses("to")
    else:
        waits("to")
    Launches.count += 1
    own = torch.Tensor if is_there else DeviceTensor
    copy = plainly(_to, source, *rest, **given)
    return plainly(torch.Tensor.as_subclass, plainly(torch.Tensor.clone, copy), own)


def waits(what: str) -> None:
    """The host waits for the device."""
    Recording.refuses(what)
    Waits.count += 1
    Waits.by_thread[threading.get_ident()] += 1


class Waits:
    """Count of the host's waits, and of host memory that the device had to read at once."""

    count = 0
    by_thread: ClassVar[collections.Counter[int]] = collections.Counter()


def _as_it_is(result: Any) -> Any:
    return result


def _destination(
    func: Any, is_there: bool, rest: list[Any], given: dict[str, Any]
) -> tuple[bool, list[Any], dict[str, Any]]:
    """Whether it goes to the device, and the arguments without that."""
    name = func.__name__
    given = {key: value for key, value in given.items() if key != "non_blocking"}
    if name != "to":
        return name == "cuda", [], {}
    device = given.pop("device", None)
    others = []
    for value in rest:
        if isinstance(value, torch.Tensor):
            device, dtype = value.device, value.dtype
            others.append(dtype)
        elif isinstance(value, (torch.device, str)):
            device = value
        elif value is not None and not isinstance(value, bool):
            others.append(value)
    goes_there = is_there if device is None else torch.device(device).type == "cuda"
    return goes_there, others, given


def _chooses(index: Any) -> bool:
    """Whether how many elements an index has depends on its data, or it comes from the host."""
    return any(
        part.dtype == torch.bool or _is_hosts(part)
        for part in filter(_is_tensor, tree_leaves(index))
        if part.dim()
    )


def _is_overlapped(args: tuple[Any, ...], given: dict[str, Any]) -> bool:
    """Whether a `copy_` between pinned memory and the device does not make the host wait."""
    pinned = any(isinstance(part, PinnedTensor) for part in args[:2])
    return pinned and bool(given.get("non_blocking", args[2:3] == (True,)))


def _refuse_mixed(name: str, args: tuple[Any, ...], given: dict[str, Any]) -> None:
    """Raise as torch does where tensors of several devices meet; a single number may."""
    if not any(map(_is_hosts, tree_leaves((args, given)))):
        return
    of_device = name == "copy_" or isinstance(args[0], DeviceTensor)
    # an index may be the host's, and what is put in whole parts; what is put in here and there not
    scattered = name == "__setitem__" and any(map(_is_tensor, tree_leaves(args[1])))
    if not of_device or name not in _TAKES or (scattered and _is_hosts(args[2])):
        raise RuntimeError(f"Expected all tensors to be on the same device: {name}")
    waits(name)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _is_hosts(value: Any) -> bool:
    return _is_tensor(value) and not isinstance(value, DeviceTensor) and value.dim() > 0

"""Compiles what wrappers launch, for a GPU that need not be there.

For programs of their own: the interpreter must be off, which Triton settles when it is imported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from benchmarks.gpu.listing import Listing

TARGET = GPUTarget("cuda", 90, 32)
_OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")
_TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}


def compiled_by(call: Callable[[], object]) -> list[Listing]:
    """The kernels that a call of wrappers on CPU tensors would launch."""
    found: list[Listing] = []

    def compile_instead(
        self: JITFunction[Any], *args: Any, grid: object, warmup: bool, **given: Any
    ) -> None:
        found.append(Listing.of(self.fn.__name__, _compile(self, args, given)))

    run = JITFunction.run
    JITFunction.run = compile_instead
    try:
        call()
    finally:
        JITFunction.run = run
    return found


def _compile(kernel: JITFunction[Any], args: tuple[Any, ...], given: dict[str, Any]) -> Any:
    """Specialised as a launch would."""
    options = {name: given.pop(name) for name in _OPTIONS if name in given}
    values = dict(zip(kernel.arg_names, args, strict=False)) | given
    specialised = _Specialised()
    signature: dict[str, Any] = {}
    for number, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr:
            specialised.constants[(number,)], signature[parameter.name] = value, "constexpr"
        else:
            signature[parameter.name] = specialised.type_of(
                value, (number,), parameter.do_not_specialize
            )
    source = ASTSource(kernel, signature, specialised.constants, specialised.attributes)
    return triton.compile(source, target=TARGET, options=options)


@dataclasses.dataclass(frozen=True, slots=True)
class _Specialised:
    """Constants and attributes of a compiled form, by the path of an argument or a field."""

    constants: dict[tuple[int, ...], Any] = dataclasses.field(default_factory=dict)
    attributes: dict[tuple[int, ...], Any] = dataclasses.field(default_factory=dict)

    def type_of(self, value: Any, path: tuple[int, ...], as_given: bool = False) -> Any:
        """Return the type of an argument. `as_given`: its value makes no form of its own.

        Triton specialises integers inside a tuple in any case.
        """
        if isinstance(value, tuple):
            fields = (self.type_of(field, (*path, n)) for n, field in enumerate(value))
            return type(value)(*fields)
        special = isinstance(value, int) and not as_given
        if special and value == 1:
            self.constants[path] = value
            return "constexpr"
        if isinstance(value, torch.Tensor) or (special and value % 16 == 0):
            self.attributes[path] = [["tt.divisibility", 16]]
        return _type_of(value)


def _type_of(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return _TYPES[value.dtype]
    return "i32" if isinstance(value, int) else "fp32"

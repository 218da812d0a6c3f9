"""Compiles what wrappers launch, for a GPU that need not be there, and reads the machine code.

For programs of their own: the interpreter must be off, which Triton settles when it is imported.
"""

from __future__ import annotations

import collections
import dataclasses
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TARGET = GPUTarget("cuda", 90, 32)
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Compiled:
    """One kernel: what a program of it takes, and its machine code.

    `registers` of a thread, `stack_bytes` of registers that did not suffice, `shared_bytes` of a
    program of `warps`.
    """

    name: str
    warps: int
    shared_bytes: int
    registers: int
    stack_bytes: int
    instructions: tuple[str, ...]
    labels: dict[str, int]

    @classmethod
    def of(cls, name: str, kernel: Any) -> Compiled:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(kernel.asm["cubin"])
            file.flush()
            usage = _told("cuobjdump", "--dump-resource-usage", file.name)
            listing = _told("nvdisasm", "--print-code", file.name)
        instructions: list[str] = []
        labels: dict[str, int] = {}
        for line in listing.splitlines():
            if label := re.match(r"(\.L_x_\d+):", line):
                labels[label[1]] = len(instructions)
            elif instruction := re.match(r"\s+/\*[0-9a-f]+\*/\s+(.*?);", line):
                instructions.append(instruction[1])
        return cls(
            name,
            kernel.metadata.num_warps,
            kernel.metadata.shared,
            _number("REG", usage),
            _number("STACK", usage),
            tuple(instructions),
            labels,
        )

    def inner_loop(self, instruction: str) -> collections.Counter[str]:
        """How often each operation is in the smallest loop that has this one."""
        loops = []
        for end, line in enumerate(self.instructions):
            target = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
            if target and self.labels[target[1]] <= end:
                body = self.instructions[self.labels[target[1]] : end + 1]
                loops.append(collections.Counter(map(_operation, body)))
        return min((loop for loop in loops if loop[instruction]), key=lambda loop: loop.total())


def compiled_by(call: Callable[[], object]) -> list[Compiled]:
    """The kernels that a call of wrappers on CPU tensors would launch."""
    found: list[Compiled] = []

    def compile_instead(
        self: JITFunction[Any], *args: Any, grid: object, warmup: bool, **given: Any
    ) -> None:
        found.append(Compiled.of(self.fn.__name__, _compile(self, args, given)))

    run = JITFunction.run
    JITFunction.run = compile_instead
    try:
        call()
    finally:
        JITFunction.run = run
    return found


def _compile(kernel: JITFunction[Any], args: tuple[Any, ...], given: dict[str, Any]) -> Any:
    """Specialised as a launch would."""
    options = {name: given.pop(name) for name in ("num_warps", "num_stages") if name in given}
    values = dict(zip(kernel.arg_names, args, strict=False)) | given
    constants, signature, attributes = {}, {}, {}
    for number, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        special = isinstance(value, int) and not parameter.do_not_specialize
        if parameter.is_constexpr or (special and value == 1):
            constants[parameter.name], signature[parameter.name] = value, "constexpr"
            continue
        signature[parameter.name] = _type_of(value)
        if isinstance(value, torch.Tensor) or (special and value % 16 == 0):
            attributes[(number,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=TARGET, options=options)


def _type_of(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return _TYPES[value.dtype]
    return "i32" if isinstance(value, int) else "fp32"


def _told(tool: str, *arguments: str) -> str:
    asked = [str(_TOOLS / tool), *arguments]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout


def _number(name: str, usage: str) -> int:
    found = re.search(rf"\b{name}:(\d+)", usage)
    assert found, usage
    return int(found[1])


def _operation(instruction: str) -> str:
    """Without its predicate and modifiers."""
    return re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0].split(".")[0]

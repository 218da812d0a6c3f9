"""Compiles every kernel for a GPU that need not be there; prints each one's name and shared memory.

Run as a program: the interpreter must be off, which Triton settles when it is imported. Wrappers
are called as ever, on CPU tensors, and what they launch is compiled instead.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from kvstore.kernels.column_mass import kernel as column_mass
from kvstore.kernels.compact import kernel as compact
from kvstore.kernels.ragged_attention import kernel as ragged_attention
from kvstore.kernels.retain import kernel as retain

_TARGET = GPUTarget("cuda", 90, 32)
_TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}
SEQUENCES, LAYERS, HEADS, GROUP, SIZE, PAGE_ROWS, ROWS = 3, 2, 2, 4, 64, 16, 96


def compile_instead(
    self: JITFunction[Any], *args: Any, grid: object, warmup: bool, **given: Any
) -> None:
    """Stands in for `JITFunction.run`, and specialises as it would."""
    options = {name: given.pop(name) for name in ("num_warps", "num_stages") if name in given}
    values = dict(zip(self.arg_names, args, strict=False)) | given
    constants, signature, attributes = {}, {}, {}
    for number, parameter in enumerate(self.params):
        value = values[parameter.name]
        special = isinstance(value, int) and not parameter.do_not_specialize
        if parameter.is_constexpr or (special and value == 1):
            constants[parameter.name], signature[parameter.name] = value, "constexpr"
            continue
        signature[parameter.name] = _type_of(value)
        if isinstance(value, torch.Tensor) or (special and value % 16 == 0):
            attributes[(number,)] = [["tt.divisibility", 16]]
    source = ASTSource(self, signature, constants, attributes)
    compiled = triton.compile(source, target=_TARGET, options=options)
    print(self.fn.__name__, compiled.metadata.shared)  # noqa: T201


def _type_of(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return _TYPES[value.dtype]
    return "i32" if isinstance(value, int) else "fp32"


def rows_of(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, SIZE, dtype=torch.bfloat16)


def indices(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def launch_prefill() -> None:
    column_mass.column_mass(
        torch.zeros(HEADS * GROUP, 9, ROWS),
        rows_of(HEADS * GROUP, ROWS),
        rows_of(HEADS, ROWS),
        torch.zeros(HEADS * GROUP, ROWS),
        torch.arange(ROWS),
        edges=range(9),
        scale=0.1,
        sliding_window=None,
        value_norms=torch.zeros(HEADS, ROWS),
    )
    compact.gather_rows(rows_of(HEADS, ROWS), rows_of(HEADS, ROWS), [torch.arange(7)] * HEADS)


def launch_attention(fed: int, window: int | None) -> None:
    tables = indices(SEQUENCES, LAYERS, HEADS, 6)
    rows, slots = indices(SEQUENCES, LAYERS, HEADS), indices(SEQUENCES)
    ragged_attention.attend(
        rows_of(SEQUENCES, HEADS * GROUP, fed),
        rows_of(LAYERS, HEADS, fed),
        rows_of(LAYERS, HEADS, fed),
        slots,
        rows_of(ROWS),
        rows_of(ROWS),
        tables,
        rows,
        slots,
        ragged_attention.line_ends(rows, slots),
        1,
        ragged_attention.AttentionScratch.of(
            SEQUENCES, HEADS, GROUP, fed, SIZE, torch.device("cpu"), row_bound=ROWS
        ),
        kv_heads=HEADS,
        page_rows=PAGE_ROWS,
        scale=0.1,
        sliding_window=window,
        lengths=torch.zeros(SEQUENCES, dtype=torch.int64),
        marks=tables,
        positions=indices(ROWS),
        log_weights=torch.zeros(ROWS) if window else None,
        starts=torch.zeros(SEQUENCES, LAYERS, HEADS, dtype=torch.int64),
        scored=torch.zeros(SEQUENCES, LAYERS, HEADS, dtype=torch.bool),
        received=torch.zeros(ROWS),
    )


def launch_retain() -> None:
    tables, slots = indices(SEQUENCES, LAYERS, HEADS, 6), indices(SEQUENCES)
    free = retain.FreePages.of(9, torch.arange(5, dtype=torch.int32))
    marks = torch.zeros(ROWS, dtype=torch.uint8)
    retain.retain(
        rows_of(LAYERS, HEADS, 4),
        rows_of(LAYERS, HEADS, 4),
        slots,
        torch.zeros(SEQUENCES, 1, dtype=torch.uint8),
        torch.zeros(SEQUENCES, dtype=torch.int64),
        rows_of(ROWS),
        rows_of(ROWS),
        indices(ROWS),
        torch.zeros(ROWS),
        marks,
        torch.zeros(ROWS),
        tables,
        tables,
        indices(SEQUENCES, LAYERS, HEADS),
        torch.zeros(SEQUENCES, LAYERS, HEADS, 10, dtype=torch.int64),
        slots,
        indices(LAYERS),
        torch.zeros(SEQUENCES, LAYERS, HEADS, dtype=torch.int64),
        torch.zeros(ROWS),
        marks,
        indices(ROWS, 2),
        free,
        free,
        page_rows=PAGE_ROWS,
    )


def main() -> None:
    JITFunction.run = compile_instead
    launch_prefill()
    launch_attention(1, None)
    launch_attention(4, 64)
    launch_retain()


if __name__ == "__main__":
    sys.exit(main())

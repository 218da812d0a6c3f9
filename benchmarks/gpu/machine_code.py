"""What the inner loop of ragged attention asks of a multiprocessor, counted in its machine code.

A tile of rows takes the longer of two times: that of its bytes out of memory, and that of its
instructions, of which a multiprocessor starts four a cycle. This needs no GPU. It is a bound and
not a measurement: nothing that waits is in it.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence

# Triton settles whether it interprets when it is first imported
os.environ["TRITON_INTERPRET"] = "0"

import torch
from rich.table import Table

from benchmarks.figures import Figure, add_options, report
from benchmarks.gpu import decode_attention
from benchmarks.gpu.compiling import TARGET, Compiled, compiled_by
from benchmarks.gpu.pool import fill
from benchmarks.gpu.sizes import TINY
from kvstore.codecs import RowCodec
from kvstore.kernels.ragged_attention.kernel import ROW_TILE

# an H200's data sheet, and its multiprocessors' limits
_PROCESSORS, _HERTZ, _MEMORY_BYTES = 132, 1.98e9, 4.8e12
_STARTED_A_CYCLE = 4
_REGISTERS, _SHARED_BYTES = 65_536, 227 * 1024
CODECS = ("model", "int8", "fp8", "int8/int4", "int4")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.machine_code", description=__doc__)
    add_options(parser)
    options = parser.parse_args(arguments)
    table = Table(
        "rows",
        "registers a thread",
        "programs together",
        "instructions a tile",
        "cycles",
        "of memory",
        title="Attention of one fed token, 64 rows, D = 128, 4 query heads a KV head",
    )
    figures = {}
    for codec in CODECS:
        kernel, read = attention(codec)
        threads = 32 * kernel.warps
        together = min(
            _REGISTERS // (kernel.registers * threads), _SHARED_BYTES // kernel.shared_bytes
        )
        # products mark the loop over tiles
        instructions = kernel.inner_loop("HMMA").total()
        started = instructions * kernel.warps / _STARTED_A_CYCLE
        memory = read / (_MEMORY_BYTES / _PROCESSORS / _HERTZ)
        table.add_row(
            codec,
            str(kernel.registers),
            str(together),
            str(instructions),
            f"{started:.0f}",
            f"{memory:.0f}",
        )
        figures[f"instruction_share_{codec}"] = Figure(
            started / memory, "ratio", "the time of the rows' bytes", 1.0
        )
        figures[f"stack_bytes_{codec}"] = Figure(kernel.stack_bytes, "bytes", "none", 0)
    report(options, figures, [table], {"target": f"{TARGET.backend} {TARGET.arch}"})


def attention(codec: str) -> tuple[Compiled, float]:
    """The kernel that goes over rows of a codec, and the bytes it reads at a time."""
    sizes = dataclasses.replace(TINY, kv_heads=8, group=4, head_size=128, page_rows=64)
    rows = torch.full((1, 1, sizes.kv_heads), sizes.mean_rows, dtype=torch.int32)
    pool = fill(rows, sizes, codec=RowCodec.parse(codec))
    compiled = compiled_by(decode_attention.step(pool, sizes))
    (chunk,) = (one for one in compiled if one.name == "attend_chunk")
    return chunk, ROW_TILE * pool.batch.store.division.row_bytes


if __name__ == "__main__":
    main()

"""Work of the kernels' loops for a multiprocessor, counted in their machine code.

A round takes the longest of its times: that of its instructions, of which a multiprocessor starts
four a cycle, that of its accesses to shared memory, of its bytes out of memory, and of its products
and exponentials. This needs no GPU. The result is a bound, because time spent waiting
is left out.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

# Triton settles whether it interprets when it is first imported
os.environ["TRITON_INTERPRET"] = "0"

import triton
from rich.table import Table

from benchmarks.figures import Figure, add_options, report
from benchmarks.gpu.compiling import TARGET
from benchmarks.gpu.counted import Round, rounds
from benchmarks.gpu.listing import spills
from benchmarks.gpu.multiprocessor import (
    exponential_cycles,
    instruction_cycles,
    memory_cycles,
    product_cycles,
    programs_together,
    shared_cycles,
)

_TAKEN = (
    "a round of",
    "registers",
    "spills",
    "shared",
    "together",
    "instructions",
    "shared memory",
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.machine_code", description=__doc__)
    add_options(parser)
    options = parser.parse_args(arguments)
    memory = Table(*_TAKEN, "memory", title="Limited by memory, in cycles")
    computing = Table(*_TAKEN, "products", "exponentials", title="Limited by computing, in cycles")
    figures = {}
    for each in rounds():
        started = instruction_cycles(len(each.instructions), each.kernel.warps)
        shared = shared_cycles(each.instructions, each.kernel.warps)
        if each.moved_bytes:
            limit, against = memory_cycles(each.moved_bytes), "the time of the rows' bytes"
            memory.add_row(*_taken(each, started, shared), f"{limit:.0f}")
        else:
            limit, against = product_cycles(each.multiply_adds), "the time of the products"
            raised = exponential_cycles(each.exponentials)
            computing.add_row(*_taken(each, started, shared), f"{limit:.0f}", f"{raised:.0f}")
        name, spilled = each.name, spills(each.instructions)
        figures[f"instruction_share_{name}"] = Figure(started / limit, "ratio", against, 1.0)
        figures[f"shared_memory_share_{name}"] = Figure(shared / limit, "ratio", against, 1.0)
        figures[f"spills_{name}"] = Figure(spilled, "accesses", "registers that suffice", 0)
    conditions = {"triton": triton.__version__, "target": f"{TARGET.backend} {TARGET.arch}"}
    report(options, figures, [memory, computing], conditions)


def _taken(each: Round, started: float, shared: float) -> tuple[str, ...]:
    kernel = each.kernel
    return (
        f"{each.name}: {each.of}",
        str(kernel.registers),
        str(spills(each.instructions)),
        str(kernel.shared_bytes),
        str(programs_together(kernel)),
        f"{started:.0f}",
        f"{shared:.0f}",
    )


if __name__ == "__main__":
    main()

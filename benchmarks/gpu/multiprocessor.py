"""Work that a multiprocessor of an H200 can do in a cycle, by data sheet and documentation."""

from __future__ import annotations

import re
from collections.abc import Iterable

from benchmarks.gpu.listing import Listing

_PROCESSORS, _HERTZ = 132, 1.98e9
# of device memory; and of a multiply-add in 16 bits, two
_MEMORY_BYTES, _OPERATIONS = 4.8e12, 989e12
_A_SECOND = _PROCESSORS * _HERTZ
_INSTRUCTIONS, _EXPONENTIALS = 4, 16
# a warp's words of 32 bits take a cycle of shared memory; of loads by matrices, a matrix does
_ACCESS = re.compile(r"(?:@!?U?P\d )?(?:LDS|STS|LDGSTS|(LDSM|STSM))\b(\S*)")
# products take 64 · 16 and N · 16 elements for four warps together
_PRODUCT = re.compile(r"HGMMA\.64x(\d+)x16\S* \S+ gdesc")
_REGISTERS, _SHARED_BYTES, _WARPS, _PROGRAMS = 65_536, 227 * 1024, 64, 32
# registers are handed out by eights
_GRAIN = 8


def memory_cycles(moved_bytes: float) -> float:
    return moved_bytes / (_MEMORY_BYTES / _A_SECOND)


def product_cycles(multiply_adds: float) -> float:
    return 2 * multiply_adds / (_OPERATIONS / _A_SECOND)


def exponential_cycles(exponentials: float) -> float:
    return exponentials / _EXPONENTIALS


def instruction_cycles(instructions: float, warps: int) -> float:
    """Return the cycles of a program of so many warps with so many instructions each."""
    return instructions * warps / _INSTRUCTIONS


def shared_cycles(instructions: Iterable[str], warps: int) -> float:
    """Return the cycles of shared memory if no two accesses collide."""
    cycles = 0.0
    for instruction in instructions:
        if product := _PRODUCT.match(instruction):
            cycles += (64 + int(product[1])) * 16 * 2 / 128 / 4
        elif access := _ACCESS.match(instruction):
            matrices, kind = access.groups()
            wide = re.search(r"\.MT?88\.(\d)" if matrices else r"\.(64|128)", kind)
            words = 1 if wide is None else int(wide[1])
            cycles += words if matrices or words == 1 else words // 32
    return cycles * warps


def programs_together(kernel: Listing) -> int:
    """Return how many programs of a kernel run on one multiprocessor at once."""
    registers = -(-kernel.registers // _GRAIN) * _GRAIN * 32 * kernel.warps
    return min(
        _REGISTERS // registers,
        _SHARED_BYTES // max(1, kernel.shared_bytes),
        _WARPS // kernel.warps,
        _PROGRAMS,
    )

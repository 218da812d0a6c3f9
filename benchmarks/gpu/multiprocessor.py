"""What a multiprocessor of an H200 does in a cycle at best, by data sheet and documentation."""

from __future__ import annotations

from benchmarks.gpu.listing import Listing

_PROCESSORS, _HERTZ = 132, 1.98e9
# of device memory; and of a multiply-add in 16 bits, two
_MEMORY_BYTES, _OPERATIONS = 4.8e12, 989e12
_A_SECOND = _PROCESSORS * _HERTZ
_INSTRUCTIONS, _EXPONENTIALS = 4, 16
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
    """Of a program of so many warps, each of which has so many instructions."""
    return instructions * warps / _INSTRUCTIONS


def programs_together(kernel: Listing) -> int:
    """Of a kernel, on one multiprocessor."""
    registers = -(-kernel.registers // _GRAIN) * _GRAIN * 32 * kernel.warps
    return min(
        _REGISTERS // registers,
        _SHARED_BYTES // max(1, kernel.shared_bytes),
        _WARPS // kernel.warps,
        _PROGRAMS,
    )

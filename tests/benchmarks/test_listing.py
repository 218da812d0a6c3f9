"""Machine code is read by loop, by the shortest path round a loop, and by width of access."""

from __future__ import annotations

import inspect

import pytest

pytest.importorskip("triton")

import triton

from benchmarks.gpu.listing import Listing
from benchmarks.gpu.multiprocessor import programs_together, shared_cycles


@triton.jit
def counts(rows: int) -> None:
    for _ in range(rows):
        pass


def a_listing(*instructions: str) -> Listing:
    """Build a listing whose loop holds all instructions but the first and the last."""
    file, (_, first) = "test_listing.py", inspect.getsourcelines(counts.fn)
    places = [(file, first)] + [(file, first + 2)] * (len(instructions) - 1)
    labels = {".L_x_0": 1, ".L_x_1": instructions.index("C")}
    return Listing("counts", 4, 65_536, 168, instructions, tuple(places), labels)


def test_instructions_of_some_rounds_are_not_on_the_shortest_path() -> None:
    skips, again = "@P1 BRA `(.L_x_1)", "@!P0 BRA `(.L_x_0)"
    listing = a_listing("A", "B", skips, "RARE", "RARE", "C", again, "EXIT")
    (loop,) = listing.loops(counts, "for _ in")
    assert loop.all == ("B", skips, "RARE", "RARE", "C", again)
    assert loop.shortest == ("B", skips, "C", again)
    assert listing.shortest() == ("A", "B", skips, "C", again, "EXIT")


def test_instructions_after_an_unconditional_branch_are_left_out() -> None:
    leaves = "BRA `(.L_x_1)"
    listing = a_listing("A", "B", leaves, "NEVER", "C", "@P0 BRA `(.L_x_0)", "EXIT")
    assert listing.shortest() == ("A", "B", leaves, "C", "@P0 BRA `(.L_x_0)", "EXIT")


@pytest.mark.parametrize(
    ("instruction", "cycles"),
    [
        ("LDS R8, [R5+UR5]", 1),
        ("@!P0 STS.64 [R5], R8", 2),
        ("LDGSTS.E.BYPASS.128 [R87], desc[UR16][R32.64], P4", 4),
        ("@!PT LDS RZ, [RZ]", 0),
        ("LDSM.16.M88 R32, [R88]", 1),
        ("LDSM.16.MT88.4 R48, [R5+UR14]", 4),
        ("HGMMA.64x64x16.F32.BF16 R56, gdesc[UR44], RZ, !UPT", 8),
        ("LDG.E.128 R8, desc[UR6][R24.64]", 0),
    ],
)
def test_a_warp_moves_128_bytes_of_shared_memory_a_cycle(instruction: str, cycles: int) -> None:
    assert shared_cycles([instruction], warps=1) == cycles


def test_registers_and_shared_memory_bound_what_runs_together() -> None:
    assert programs_together(a_listing("C")) == 3

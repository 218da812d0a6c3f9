"""The sanitizer sees each kind of unsound access, and none where there is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from tests.sanitizer import Sanitizer

if torch.cuda.is_available():
    pytest.skip("the interpreter is off", allow_module_level=True)


@triton.jit
def _write_one_further(out: Any) -> None:
    lane = tl.arange(0, 8)
    tl.store(out + lane + 1, lane)


@triton.jit
def _write_one_place(out: Any, value: Any) -> None:
    tl.store(out, value + tl.program_id(0))


@triton.jit
def _write_the_same(out: Any) -> None:
    tl.store(out, 7)


@triton.jit
def _read_the_next(out: Any) -> None:
    program = tl.program_id(0)
    tl.store(out + program, tl.load(out + program + 1))


@triton.jit
def _turn(out: Any, given: Any, barrier: tl.constexpr) -> None:
    lane = tl.arange(0, 8)
    tl.store(out + lane, tl.load(given + lane))
    if barrier:
        tl.debug_barrier()
    turned = tl.load(out + 7 - lane)
    tl.store(given + lane, turned)


@triton.jit
def _shift(out: Any, barrier: tl.constexpr) -> None:
    lane = tl.arange(0, 4)
    further = tl.load(out + lane + 1)
    if barrier:
        tl.debug_barrier()
    tl.store(out + lane, further)


@triton.jit
def _add(out: Any) -> None:
    lane = tl.arange(0, 8)
    tl.store(out + lane, tl.load(out + lane) + 1)


@triton.jit
def _write_twice(out: Any, barrier: tl.constexpr) -> None:
    lane = tl.arange(0, 8)
    tl.store(out + lane, lane)
    if barrier:
        tl.debug_barrier()
    tl.store(out + lane, lane + 1)


@triton.jit
def _write_all_to_one(out: Any) -> None:
    lane = tl.arange(0, 8)
    tl.store(out + lane // 8, lane)


@triton.jit
def _count(out: Any, reads: tl.constexpr) -> None:
    if reads:
        tl.store(out + 1, tl.load(out))
    tl.atomic_add(out, 1)


@triton.jit
def _scalar_after_all_read_it(out: Any, barrier: tl.constexpr) -> None:
    held = tl.load(out)
    if barrier:
        tl.debug_barrier()
    tl.store(out, held + 1)


def numbers(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.int32)


@pytest.mark.parametrize(
    ("kernel", "programs", "given", "fault"),
    [
        (_write_one_further, 1, (numbers(8),), "out of bounds"),
        (_write_one_further, 1, (numbers(9)[:8],), "out of bounds"),
        (_write_one_place, 2, (numbers(1), 5), "another program reads or writes"),
        (_read_the_next, 2, (numbers(3),), "another program reads or writes"),
        (_turn, 1, (numbers(8), numbers(8), False), "reads what was written"),
        (_shift, 1, (numbers(5), False), "still have to read"),
        (_write_twice, 1, (numbers(8), False), "writes twice"),
        (_write_all_to_one, 1, (numbers(8),), "two threads"),
        (_count, 2, (numbers(2), True), "atomic"),
        (_scalar_after_all_read_it, 1, (numbers(1), False), "still have to read"),
    ],
)
def test_unsound_accesses_raise(kernel: Any, programs: int, given: Any, fault: str) -> None:
    with pytest.raises(Exception, match=fault):
        kernel[(programs,)](*given)


@pytest.mark.parametrize(
    ("kernel", "programs", "given"),
    [
        (_write_one_further, 1, (numbers(9),)),
        (_write_one_place, 1, (numbers(1), 5)),
        (_write_the_same, 3, (numbers(1),)),
        (_turn, 1, (numbers(8), numbers(8), True)),
        (_shift, 1, (numbers(5), True)),
        (_add, 1, (numbers(8),)),
        (_write_twice, 1, (numbers(8), True)),
        (_count, 3, (numbers(2), False)),
        (_scalar_after_all_read_it, 1, (numbers(1), True)),
    ],
)
def test_sound_accesses_pass(kernel: Any, programs: int, given: Any, sanitized: Sanitizer) -> None:
    kernel[(programs,)](*given)
    assert sanitized.accesses

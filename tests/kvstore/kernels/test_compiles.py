"""Kernels that the interpreter runs must also pass the compiler, which is stricter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

# what an SM of compute capability 9.0 has for one program
_SHARED_BYTES = 227 * 1024


def test_every_kernel_compiles_for_a_gpu(tmp_path: Path) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-m", "tests.kvstore.kernels.compile_kernels"],
        cwd=Path(__file__).parents[3],
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = [line.split() for line in ended.stdout.splitlines()]
    assert {name for name, *_ in found} == {
        "_column_peak",
        "column_sums",
        "row_totals",
        "_gather",
        "_row_ends",
        "attend_slice",
        "combine_partials",
        "write_row_attention",
        "retain_head",
    }
    assert all(int(shared) <= _SHARED_BYTES for _, shared, *_ in found)
    # registers suffice where memory's speed is wanted
    assert {tuple(loops) for name, _, *loops, _ in found if name == "attend_slice"} == {("1", "0")}
    # scores are the CPU's to the last bit
    assert {fused for name, *_, fused in found if name == "retain_head"} == {"0"}

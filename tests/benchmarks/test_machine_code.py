"""The count of the kernels' machine code, in a process of its own: the interpreter is off there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def test_every_loop_is_counted(tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks.gpu.machine_code", "--json", str(target)]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, timeout=250)
    figures = json.loads(target.read_text())["figures"]
    counted = ("model", "int8", "fp8", "int8/int4", "int4", "combine_partials")
    counted += (
        "write_row_attention",
        "column_sums",
        "row_totals",
        "gather_model",
        "gather_int8",
        "gather_int4",
    )
    counted += ("retain_window", "retain_budget", "retain_moves")
    kinds = ("instruction_share", "shared_memory_share", "spills")
    assert set(figures) == {f"{kind}_{name}" for kind in kinds for name in counted}
    assert all(0 < figures[f"instruction_share_{name}"]["value"] < 10 for name in counted)

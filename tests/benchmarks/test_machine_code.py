"""The count of attention's machine code, in a process of its own: the interpreter is off there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def test_every_codec_is_counted(tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks.gpu.machine_code", "--json", str(target)]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, timeout=250)
    figures = json.loads(target.read_text())["figures"]
    shares = [name for name in figures if name.startswith("instruction_share_")]
    assert len(shares) == 5
    assert all(0 < figures[name]["value"] < 10 for name in shares)

"""`headwise eval` takes the missing measurements and reports all of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from services.commands import command_line

# six passages of two policies
CELLS = 2 * 6
PARTS = ["--part", "forced", "--context", "48", "--passages", "6"]
POLICIES = ["--policy", "full", "--policy", "coverage:recovery=.9"]


def arguments(model: Path, out: Path, *more: str) -> list[str]:
    cache = ["--model-cache", str(out / "models")]
    return ["eval", "--model", str(model), "--out", str(out), "--quick", *cache, *POLICIES, *more]


def cells(out: Path) -> list[str]:
    path = out / "cells.jsonl"
    return path.read_text().splitlines()[1:] if path.exists() else []


def test_a_killed_run_resumes_after_its_last_measurement(tiny_model: Path, tmp_path: Path) -> None:
    wanted = arguments(tiny_model, tmp_path, *PARTS)
    command = [sys.executable, "-m", "services.cli", *wanted]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ) as process:
        deadline = time.monotonic() + 120
        while len(cells(tmp_path)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    before = cells(tmp_path)
    assert 2 <= len(before) < CELLS
    # killed in the middle of a line, too
    path = tmp_path / "cells.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    result = CliRunner().invoke(command_line, wanted)
    assert result.exit_code == 0, result.output
    after = cells(tmp_path)
    assert after[: len(before) - 1] == before[:-1]
    keys = [tuple(json.loads(line)[k] for k in ("part", "case", "setting")) for line in after]
    assert len(keys) == len(set(keys)) == CELLS
    page = (tmp_path / "report.html").read_text()
    assert page.index("<svg") < page.index("<table")
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert [(row["part"], row["cases"]) for row in rows] == [("forced", 6)] * 2
    # a third run has nothing to measure
    assert CliRunner().invoke(command_line, wanted).exit_code == 0
    assert cells(tmp_path) == after


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--policy", "h3o"], "h3o"),
        (["--policy", "h2o:budget=7"], "budget"),
        (["--policy", "full"], "the same as"),
    ],
)
def test_a_bad_setting_is_named_before_the_model_is_loaded(
    tmp_path: Path, more: list[str], said: str
) -> None:
    result = CliRunner().invoke(command_line, arguments(tmp_path / "none", tmp_path, *more))
    assert result.exit_code == 1
    assert said in result.output


def test_a_text_that_is_too_short_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("A few words.")
    more = ["--part", "forced", "--text", str(text)]
    result = CliRunner().invoke(command_line, arguments(tiny_model, tmp_path, *more))
    assert result.exit_code == 1
    assert "are needed" in result.output

"""A part as a process with a limit, its lines shown and kept as they come."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from benchmarks.gpu.first_run.outcomes import Outcome
from benchmarks.gpu.parts import Part

# a part that is interrupted may write what it knows; one that hangs in a library does not
_GRACE_SECONDS = 3.0
_EXIT_WRONG, _EXIT_SKIPPED = 3, 4


def run_part(
    part: Part, arguments: list[str], seconds: float, log: Path, environment: Mapping[str, str]
) -> Outcome:
    """Run the part for at most so many seconds. Its process group is gone afterwards."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "benchmarks.gpu", part.name, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=dict(environment),
        start_new_session=True,
    )
    reader = threading.Thread(target=_show, args=(process, part.name, log), daemon=True)
    reader.start()
    timed_out = False
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        timed_out = True
        _interrupt(process)
    finally:
        _end_group(process)
    # a process that left the group may keep the pipe open
    reader.join(_GRACE_SECONDS)
    taken = time.monotonic() - began
    said = f"its limit of {seconds:.0f} s" if timed_out else _said(process.returncode)
    return Outcome(part.name, _word(process.returncode, timed_out=timed_out), said, taken, seconds)


def _word(code: int, *, timed_out: bool) -> str:
    if timed_out:
        return "timed out"
    return {0: "passed", _EXIT_WRONG: "wrong", _EXIT_SKIPPED: "skipped"}.get(code, "failed")


def _said(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"


def _show(process: subprocess.Popen[str], name: str, log: Path) -> None:
    """Print each line under the part's name, and keep it."""
    lines: IO[str] | None = process.stdout
    assert lines is not None
    with log.open("w") as kept:
        for line in lines:
            kept.write(line)
            kept.flush()
            sys.stdout.write(f"{name}: {line}")
            sys.stdout.flush()


def _interrupt(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_SECONDS)


def _end_group(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

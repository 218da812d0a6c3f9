"""Runs one part of the measurements on a GPU in this process; its figures come one by one.

`python -m benchmarks.gpu.first_run` runs all of them, each in a process of its own. `--tiny` tries
the same scripts on toy shapes in Triton's interpreter, without a GPU; times mean nothing then.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.parts import BY_NAME, IMPORTS

# exit codes that the program above tells apart
WRONG, SKIPPED = 3, 4


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__)
    parser.add_argument("part", choices=list(BY_NAME))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("build/gpu/parts"))
    chosen = parser.parse_args(arguments)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    # cuBLAS reads it when it is loaded; without it what is deterministic elsewhere only warns
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if chosen.part == IMPORTS:
        from benchmarks.gpu.imports import check

        return check(chosen.folder, tiny=chosen.tiny)
    if chosen.tiny:
        from benchmarks.gpu.interpreted import interpret

        interpret()
    if chosen.part.startswith("tests-"):
        from benchmarks.gpu.recorded_tests import run_tests

        return WRONG if run_tests(chosen.part, chosen.folder, tiny=chosen.tiny) else 0
    if chosen.part == "memcheck":
        from benchmarks.gpu.memcheck import run_memcheck

        return run_memcheck(chosen.folder, tiny=chosen.tiny)
    return _measure(chosen.part, chosen.folder, tiny=chosen.tiny)


def _measure(part: str, folder: Path, *, tiny: bool) -> int:
    import dataclasses

    from benchmarks.gpu.faults import strike
    from benchmarks.gpu.figures import Recorder
    from benchmarks.gpu.measures import measured
    from benchmarks.gpu.setting import Setting

    setting = Setting.of(part, folder, tiny=tiny)
    conditions = dataclasses.asdict(setting.sizes) | {
        "dtype": str(setting.sizes.dtype),
        "tiny": tiny,
    }
    recorder = Recorder(folder / f"{part}.json", part, setting.machine, conditions)
    for name, figure in measured(setting):
        recorder.add(name, figure)
        strike(part)
    if recorder.wrong:
        print("wrong:", ", ".join(recorder.wrong), flush=True)
    return WRONG if recorder.wrong else 0


if __name__ == "__main__":
    sys.exit(main())

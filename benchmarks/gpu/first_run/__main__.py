"""Runs the parts of the first run on a GPU: 1 for correctness, 2 for kernels, 3 for whole steps.

Each part is a process of its own with a limit, so that one which crashes, hangs or is wrong costs
no other. Figures are printed and written when they come; `summary.txt` and `figures.json` in the
folder are up to date after each part. Nothing is installed. `--tiny` runs the same commands on toy
shapes without a GPU.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.first_run.outcomes import Outcomes
from benchmarks.gpu.first_run.plan import Plan
from benchmarks.gpu.parts import PARTS, RUN_SECONDS, chosen

_FOLDERS = {False: Path("build/gpu"), True: Path("build/gpu-dry/results")}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.list:
        for part in PARTS:
            print(f"run {part.run}  {part.name:16} at most {part.seconds:g} s")
        return 0
    try:
        parts = chosen(options.run or RUN_SECONDS, filter(None, options.parts.split(",")))
    except KeyError as unknown:
        print(f"no part is called {unknown}; --list shows them", file=sys.stderr)
        return 2
    # `timeout` sends this one: the parts are to end, and what is known is to be kept
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    outcomes = Outcomes(options.folder or _FOLDERS[options.tiny])
    plan = Plan(outcomes, tiny=options.tiny, slower=options.slower)
    try:
        plan.run(parts)
    except KeyboardInterrupt:
        print("stopped", flush=True)
    print(outcomes.write_summary(), flush=True)
    return 0 if outcomes.all_passed(parts) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.first_run", description=__doc__)
    parser.add_argument(
        "--run", type=int, action="append", choices=list(RUN_SECONDS), help="1, 2 or 3; else all"
    )
    parser.add_argument("--parts", default="", help="these alone: `smoke,retention`; see --list")
    parser.add_argument("--list", action="store_true", help="name the parts and their limits")
    parser.add_argument("--tiny", action="store_true", help="toy shapes on a CPU; times are void")
    parser.add_argument("--folder", type=Path, help="where files go: build/gpu, or of --tiny")
    parser.add_argument(
        "--slower", type=float, default=1.0, help="so many times every limit, for a slow machine"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

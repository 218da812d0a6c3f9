"""A few tests under CUDA's memcheck, which finds accesses out of bounds.

Racecheck sees shared memory alone, and the kernels share nothing there: repeated runs that are
compared bit by bit are what shows a race of theirs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.gpu.figures import Recorder

_KERNELS = "tests/kvstore/kernels"
# one for each kernel: under the tool a test takes ten to fifty times as long
TESTS = (
    f"{_KERNELS}/ragged_attention/test_kernel.py::test_a_batch_of_empty_heads_sees_only_itself",
    f"{_KERNELS}/retain/test_kernel.py::test_a_full_queue_of_pages_wraps_around",
    f"{_KERNELS}/compact/test_kernel.py::test_strides_of_any_kind",
    f"{_KERNELS}/column_mass/test_kernel.py::test_columns_beyond_the_keys_are_left_alone",
    f"{_KERNELS}/column_peak/test_kernel.py",
)
_PROGRAM = "compute-sanitizer"
SKIPPED, WRONG = 4, 3


def run_memcheck(folder: Path, *, tiny: bool) -> int:
    """Run the tests under the tool; what the tool finds is an exit code of its own."""
    tool = [_PROGRAM, "--tool", "memcheck", "--error-exitcode", "9"]
    if tiny:
        tool = []
    elif shutil.which(_PROGRAM) is None:
        print(f"{_PROGRAM} is not on the path", flush=True)
        return SKIPPED
    command = [*tool, sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += ["-W", "default", "-m", "not soak" if tiny else "gpu", *TESTS]
    # an allocator that keeps memory would hide what is read beyond the end of a tensor
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    code = subprocess.run(command, env=environment, check=False).returncode
    recorder = Recorder(
        folder / "memcheck.json", "memcheck", "see the part imports", {"tiny": tiny}
    )
    figure = Figure(code, "tests", "exit code of pytest, or 9 for what the tool finds", 0)
    recorder.add("memcheck_exit_code", figure)
    return WRONG if code else 0

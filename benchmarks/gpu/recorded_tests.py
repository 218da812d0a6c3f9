"""The GPU's tests as a part: each outcome is counted when it comes."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest

from benchmarks.figures import Figure
from benchmarks.gpu.figures import Recorder

_KERNELS = ("tests/kvstore/kernels",)
_SERVICES = (
    "tests/services/decode/engine/test_cuda_graph.py",
    "tests/services/decode/engine/test_cuda_graphs.py",
    "tests/services/prefill/compute/test_prefiller.py",
    "tests/services/prefill/calibration/test_on_a_gpu.py",
    "tests/services/evaluation/test_on_a_gpu.py",
)
# most of the kernels' tests compile; services' models share the device
PATHS = {"tests-kernels": (_KERNELS, 12), "tests-services": (_SERVICES, 4)}
# on a CPU one test in so many runs, the same ones each time: the interpreter takes long
_SHARE = {"tests-kernels": 25, "tests-services": 12}
# a test that compiles, and one in the interpreter of a busy machine
_SECONDS_A_TEST = {False: 60, True: 300}


def run_tests(part: str, folder: Path, *, tiny: bool) -> bool:
    """Run the tests of a part; whether any failed, or none ran."""
    paths, most = PATHS[part]
    recorded = Recorded(part, folder, tiny=tiny)
    workers = min(most, os.cpu_count() or 1)
    arguments = [
        *paths,
        "-q",
        *("-n", str(workers), "--dist", "worksteal"),
        # a library's warning is no fault of a kernel
        *("-W", "default"),
        *("-p", "no:cacheprovider"),
        *("--timeout", str(_SECONDS_A_TEST[tiny])),
        *("-m", "not soak" if tiny else "gpu"),
        f"--junitxml={folder / part}.xml",
    ]
    if tiny:
        # in every worker, which collects for itself
        os.environ[Sampled.VARIABLE] = str(_SHARE[part])
        arguments += ["-p", "benchmarks.gpu.recorded_tests"]
    code = pytest.main(arguments, plugins=[recorded])
    print(f"pytest ended with {code!r}", flush=True)
    return code != pytest.ExitCode.OK


class Recorded:
    """Counts what passed and failed after each test."""

    def __init__(self, part: str, folder: Path, *, tiny: bool) -> None:
        self._name = part.removeprefix("tests-")
        conditions = {"tiny": tiny, "share": _SHARE[part] if tiny else 1}
        self._recorder = Recorder(folder / f"{part}.json", part, "see the part imports", conditions)
        self._passed = self._failed = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed += 1
            print(f"failed: {report.nodeid} ({report.when}): {_reason(report)}", flush=True)
        elif report.when == "call" and report.passed:
            self._passed += 1
        if report.when == "teardown" or report.failed:
            self._record()

    def _record(self) -> None:
        against = "tests of this part so far"
        passed = Figure(self._passed, "tests", against)
        self._recorder.set(f"{self._name}_tests_passed", passed)
        failed = Figure(self._failed, "tests", against, 0)
        self._recorder.set(f"{self._name}_tests_failed", failed)


def _reason(report: pytest.TestReport) -> str:
    lines = str(report.longrepr).strip().splitlines()
    told = [line for line in lines if line.startswith("E ")]
    return (told or lines or [""])[0][:300]


class Sampled:
    """Keeps one test in so many, chosen by name, so that a change of one moves no other."""

    VARIABLE = "HEADWISE_GPU_SHARE"

    @staticmethod
    def keeps(name: str, share: int) -> bool:
        return zlib.crc32(name.encode()) % share == 0


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drop what is not in the sample; pytest calls it where this file is a plugin."""
    share = int(os.environ.get(Sampled.VARIABLE, "1"))
    kept = [item for item in items if Sampled.keeps(item.nodeid, share)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept

"""The first run on a GPU: a part that crashes, hangs or is wrong costs no other."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from benchmarks.figures import Figure
from benchmarks.gpu.faults import VARIABLE
from benchmarks.gpu.figures import Implausible, Recorder
from benchmarks.gpu.first_run import plan
from benchmarks.gpu.first_run.outcomes import Outcome, Outcomes
from benchmarks.gpu.first_run.summary import Row, lines
from benchmarks.gpu.parts import PARTS, RUN_SECONDS, Part, chosen
from benchmarks.gpu.predictions import PREDICTED
from benchmarks.gpu.recorded_tests import PATHS
from benchmarks.gpu.requirements import NEEDED

ROOT = Path(__file__).parents[2]
# at least one test of each kernel, of captured steps and of prefill
_SOME_OF_THEM = (
    "column_mass/test_kernel.py",
    "column_peak/test_kernel.py",
    "compact/test_kernel.py",
    "prefill_attention/test_prefill_attention.py",
    "ragged_attention/test_kernel.py",
    "retain/test_kernel.py::test_any_rule_in_any_head",
    "decode/engine/test_cuda_graph.py",
    "prefill/compute/test_prefiller.py",
)
MACHINE = ROOT / "benchmarks" / "gpu" / "machine"


def run(
    folder: Path, parts: str, *, faults: str = "", slower: float = 1.0
) -> tuple[int, dict[str, Any], str]:
    """Return the exit code, the document of all figures, and the summary."""
    command = [sys.executable, "-m", "benchmarks.gpu.first_run", "--tiny", "--parts", parts]
    command += ["--folder", str(folder), "--slower", str(slower)]
    environment = os.environ | {VARIABLE: faults}
    done = subprocess.run(command, cwd=ROOT, env=environment, timeout=280, check=False)
    document = json.loads((folder / "figures.json").read_text())
    return done.returncode, document, (folder / "summary.txt").read_text()


def words(document: dict[str, Any]) -> dict[str, str]:
    return {each["part"]: each["word"] for each in document["outcomes"]}


def test_parts_that_crash_hang_or_are_wrong_cost_no_other(tmp_path: Path) -> None:
    faults = "gather=crash,choosing=hang,smoke-retention=wrong"
    parts = "smoke-retention,ceilings,gather,choosing,column-mass"
    code, document, summary = run(tmp_path, parts, faults=faults, slower=0.3)
    assert code == 1
    assert words(document) == {
        "smoke-retention": "wrong",
        "ceilings": "passed",
        "gather": "failed",
        "choosing": "timed out",
        "column-mass": "passed",
    }
    figures = document["figures"]
    # what came before a crash and a hang is kept, and what comes after them is measured
    assert {"copy_bandwidth", "compact_bandwidth_ratio", "choose_seconds"} <= set(figures)
    assert {"column_mass_all_seconds", "column_mass_weighted_seconds"} <= set(figures)
    assert "compact_bandwidth_ratio_int8" not in figures
    assert figures["smoke_retention_16_rows"]["value"] > 1
    assert re.search(r"^smoke_retention_16_rows .* FAIL ", summary, re.M)
    assert re.search(r"^gather +failed .* SIGABRT$", summary, re.M)
    assert re.search(r"^choosing +timed out .* its limit of", summary, re.M)


def test_ceilings_run_first_and_figures_are_judged(tmp_path: Path) -> None:
    code, document, summary = run(tmp_path, "smoke-gather,choosing")
    assert code == 0
    assert list(words(document)) == ["smoke-gather", "ceilings", "choosing"]
    assert re.search(r"^smoke_gather_model .* <= 1 +pass ", summary, re.M)
    # a time of toy shapes meets no target and fails none
    assert re.search(r"^choose_seconds .* - +- ", summary, re.M)
    # a later call keeps what the folder has
    code, document, _ = run(tmp_path, "retention")
    assert list(words(document)) == ["smoke-gather", "ceilings", "choosing", "retention"]


def test_nothing_runs_where_an_import_fails(tmp_path: Path) -> None:
    (tmp_path / "shadow").mkdir()
    (tmp_path / "shadow" / "google_crc32c.py").write_text("raise ImportError('not built')\n")
    command = [sys.executable, "-m", "benchmarks.gpu.first_run", "--tiny", "--run", "1"]
    command += ["--folder", str(tmp_path / "found")]
    path = os.pathsep.join((str(tmp_path / "shadow"), str(ROOT)))
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
        timeout=200,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "import google_crc32c: ImportError: not built" in done.stdout
    outcomes = json.loads((tmp_path / "found" / "outcomes.json").read_text())
    assert [(each["part"], each["word"]) for each in outcomes] == [("imports", "failed")]


def test_a_part_that_cannot_be_started_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(part: Part, *_: object) -> Outcome:
        if part.name == "gather":
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return Outcome(part.name, "passed", "exit code 0", 1.0, 2.0)

    monkeypatch.setattr(plan, "run_part", start)
    outcomes = Outcomes(tmp_path)
    plan.Plan(outcomes, tiny=True).run(chosen([], ["ceilings", "gather", "choosing"]))
    found = {name: outcomes.of(name) for name in ("ceilings", "gather", "choosing")}
    assert found == {"ceilings": "passed", "gather": "failed", "choosing": "passed"}
    assert "Resource temporarily unavailable" in (tmp_path / "summary.txt").read_text()


def test_the_program_needs_nothing_but_the_standard_library() -> None:
    for module in ("first_run", "requirements"):
        code = f"import benchmarks.gpu.{module}"
        subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, check=True, timeout=60)
    code = "from benchmarks.gpu.requirements import missing; print(*missing(), sep='\\n')"
    command = [sys.executable, "-S", "-c", code]
    found = subprocess.run(command, cwd=ROOT, check=True, timeout=60, capture_output=True)
    assert b"torch is missing" in found.stdout.splitlines()
    command = [sys.executable, "-S", "-m", "benchmarks.gpu.first_run", "--list"]
    listed = subprocess.run(command, cwd=ROOT, check=True, timeout=60, capture_output=True)
    assert len(listed.stdout.splitlines()) == len(PARTS)


def test_impossible_figures_are_refused(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.json", "a", "a machine", {})
    for value in (float("nan"), float("inf"), 0.0, -1.0):
        with pytest.raises(Implausible):
            recorder.add("seconds", Figure(value, "seconds", "nothing"))
    recorder.add("wrong", Figure(0.0, "tests", "all", 0))
    assert not recorder.wrong
    recorder.add("error", Figure(1.5, "tolerances", "float64", 1.0))
    assert recorder.wrong == ["error"]


@pytest.mark.parametrize(
    ("value", "at_least", "judged", "verdict"),
    [
        (0.9, True, True, "pass"),
        (0.8, True, True, "FAIL"),
        (0.8, False, True, "pass"),
        (0.9, False, True, "FAIL"),
        (0.9, False, False, "-"),
    ],
)
def test_a_target_is_reached_or_not_exceeded(
    value: float, at_least: bool, judged: bool, verdict: str
) -> None:
    row = Row("skew_ratio", value, "ratio", "a peer", 0.85, at_least=at_least, judged=judged)
    assert row.verdict == verdict
    assert ("predicted" in row.foreseen or "below" in row.foreseen) == judged
    (_, line, _, last) = lines([row])
    assert verdict in line.split()
    assert f"{int(verdict == 'pass')} passed, {int(verdict == 'FAIL')} failed" in last


def test_a_name_stands_for_a_part_or_for_all_that_begin_with_it() -> None:
    assert [part.name for part in chosen([], ["retention", "ceilings"])] == [
        "ceilings",
        "retention",
    ]
    assert len(chosen([], ["smoke"])) == 8
    assert {part.run for part in chosen([2], [])} == {2}
    with pytest.raises(KeyError):
        chosen([], ["retain"])


def test_limits_of_a_run_leave_time_for_its_longest_part() -> None:
    for number, seconds in RUN_SECONDS.items():
        of_run = [part for part in PARTS if part.run == number]
        assert max(part.seconds for part in of_run) < seconds
    assert sum(RUN_SECONDS.values()) == 670


def test_every_needed_package_is_in_the_image_or_the_list_of_wheels() -> None:
    listed = {
        line.partition("==")[0].lower()
        for name in ("versions.txt", "wheels.txt")
        for line in (MACHINE / name).read_text().splitlines()
        if not line.startswith("#")
    }
    assert {name.lower() for _, name, _ in NEEDED} <= listed


def test_the_gpus_tests_are_collected_where_there_is_one() -> None:
    """Marks that only a GPU's session sets are set: nothing else would see them."""
    paths = [path for of_part, _ in PATHS.values() for path in of_part]
    arguments = [*paths, "--collect-only", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    code = "import torch; torch.cuda.is_available = lambda: True; import pytest; "
    code += f"pytest.main({arguments!r})"
    command = [sys.executable, "-c", code]
    found = subprocess.run(
        command, cwd=ROOT, check=True, timeout=120, capture_output=True, text=True
    )
    counted = re.search(r"(\d+)(?:/\d+)? tests collected", found.stdout)
    assert counted, found.stdout[-2000:]
    assert int(counted[1]) > 200
    for path in _SOME_OF_THEM:
        assert path in found.stdout


def test_the_page_of_predictions_has_every_one() -> None:
    page = (ROOT / "docs" / "gpu-predictions.md").read_text()
    for name, each in PREDICTED.items():
        assert re.search(rf"^\| `{re.escape(name)}` \| {each.told} \|", page, re.M), name

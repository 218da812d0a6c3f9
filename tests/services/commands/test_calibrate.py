"""`headwise calibrate` writes the files that prefill reads, and refuses a bad model by name."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from kvstore.policies import parse_policy
from services.commands import command_line
from services.prefill.calibration.artefacts import Artefact
from services.prefill.calibration.calibrations import Calibrations
from tests.services.decode.engine.engine_parts import load_served


def test_both_artefacts_are_written_and_found(tiny_model: Path, tmp_path: Path) -> None:
    arguments = ["calibrate", "--model", str(tiny_model), "--model-cache", str(tmp_path)]
    result = CliRunner().invoke(command_line, arguments)
    assert result.exit_code == 0, result.output
    calibrations = Calibrations(load_served(tiny_model), tmp_path)
    paths = {calibrations.path(kind) for kind in Artefact}
    assert set(tmp_path.iterdir()) == paths
    assert all(str(path) in result.output for path in paths)
    written = {path: path.stat().st_mtime_ns for path in paths}
    calibration = calibrations.needed_by(parse_policy("qfilters", {"retrieval_ratio": 0.5}))
    assert len(calibration.retrieval_heads(0.5)) == 2
    assert {path: path.stat().st_mtime_ns for path in paths} == written


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere")
    result = CliRunner().invoke(command_line, ["calibrate", "--model", missing])
    assert result.exit_code == 1
    assert missing in result.output

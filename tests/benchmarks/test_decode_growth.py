"""Growth is found where there is some, and a run on a tiny model writes every figure."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import decode_growth, pool_overhead
from benchmarks.decode_growth import Course

_ROWS = np.arange(1000, 3000)


def _course(per_row: float, bend: float = 0.0, drift: float = 0.0, every: int = 1) -> Course:
    """Steps of 40 ms and noise, and some more a row and a row squared, on a drifting machine."""
    noise = np.random.default_rng(0).normal(0, 0.002, len(_ROWS))
    seconds = 0.04 + noise + per_row * _ROWS + bend * _ROWS**2
    slower = 1 + drift * np.sin(np.arange(len(_ROWS)) / 200)
    return Course((seconds * slower)[::every], _ROWS[::every])


def test_a_flat_course_has_no_growth_and_a_line_has_its_slope() -> None:
    assert _course(0.0).growth == pytest.approx(1, abs=0.01)
    growing = _course(1e-5)
    assert growing.growth == pytest.approx((0.04 + 0.029) / (0.04 + 0.011), abs=0.01)
    assert growing.seconds_per_row == pytest.approx(1e-5, rel=0.02)
    assert growing.smooth(40).explained(1) > 0.99


def test_drift_of_the_machine_is_taken_out() -> None:
    drifting, bare = _course(1e-5, drift=0.3), _course(0.0, drift=0.3, every=4)
    assert drifting.smooth(40).explained(1) < 0.3
    assert drifting.beside(bare).explained(1) > 0.85


def test_a_course_that_is_no_straight_line_is_told_apart() -> None:
    # down and up again
    course = _course(-4e-5, 1e-8).smooth(40)
    assert course.explained(1) < 0.5 < 0.9 < course.explained(2)


def test_a_run_writes_every_figure_and_a_plot(tiny_model: Path, tmp_path: Path) -> None:
    out, plot = tmp_path / "figures.json", tmp_path / "course.png"
    sizes = ["--tokens", "400", "--steps", "200"]
    paths = ["--json", str(out), "--plot", str(plot)]
    decode_growth.main(["--model", str(tiny_model), *sizes, *paths])
    document = json.loads(out.read_text())
    assert set(document) == {"date", "machine", "conditions", "figures"}
    assert "growth_fixed_2000" in document["figures"]
    assert all(np.isfinite(figure["value"]) for figure in document["figures"].values())
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_pool_holds_little_beside_the_rows(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    pool_overhead.main(["--model", str(tiny_model), "--quick", "--json", str(out)])
    figures = json.loads(out.read_text())["figures"]
    # rows of 128 bytes here: 9 bytes of marks weigh more than in a real model
    assert 1 < figures["resident_ratio_8"]["value"] < 1.2
    assert figures["kept_ratio_8"]["value"] <= 1

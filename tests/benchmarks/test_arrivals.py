"""The arrivals benchmark on a tiny model: recorded caches arrive, and every figure is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import arrivals

pytestmark = pytest.mark.processes


def test_recorded_caches_arrive_beside_running_answers(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    sizes = ["--tokens", "200", "--seconds", "0.5", "--pause", "0.1", "--rounds", "1"]
    arrivals.main(["--model", str(tiny_model), *sizes, "--json", str(out)])
    document = json.loads(out.read_text())
    assert set(document["figures"]) == {"gap_p99_ratio_arrivals", "gap_p50_ratio_arrivals"}
    assert all(figure["value"] > 0 for figure in document["figures"].values())
    assert document["conditions"]["arrived"] >= 3
    # keys and values of 199 tokens, compacted, in 2 layers of 2 heads
    assert 0 < document["conditions"]["cache_bytes"] < 199 * 4 * 160

"""The benchmarks of needles and of kvpress on a tiny model: figures under their names."""

import json

import torch

from benchmarks import fidelity_vs_kvpress, needles
from benchmarks.fidelity_vs_kvpress import Press
from services.evaluation.forced_runs import Measured
from services.evaluation.teacher_forcing import Divergence

_COMPACT = ("default", "h2o:budget=.2")


def test_the_defaults_share_of_the_needles_is_a_figure(tiny_model, tmp_path):
    out = tmp_path / "figures.json"
    few = ["--lengths", "200", "300", "--every", "6", "--policy", "h2o:budget=.2"]
    needles.main(["--model", str(tiny_model), "--json", str(out), *few])
    document = json.loads(out.read_text())
    assert document["conditions"]["cases"] == 4
    of_each = {f"needle_{kind}_{name}" for kind in ("ratio", "bytes") for name in _COMPACT}
    assert set(document["figures"]) == {"needle_full", *of_each}


def test_the_ratio_is_of_what_the_full_cache_finds():
    found = {
        "full": [(True, 1.0), (True, 1.0), (False, 1.0), (True, 1.0)],
        "coverage": [(True, 0.4), (False, 0.4), (False, 0.4), (True, 0.4)],
    }
    figures = needles.figures(found, "coverage")
    assert figures["needle_full"].value == 0.75
    assert figures["needle_ratio_default"].value == 2 / 3


def test_a_masked_press_stands_at_its_real_bytes():
    kl = torch.tensor([0.25, 0.75], dtype=torch.float64)
    ours = Measured("balanced", 0.3, Divergence(kl, kl, kl), {"rows": 0.3, "bytes": 0.31})
    peers = [Press("KVzip", 0.2, 0.02, 1.0), Press("SnapKV", 0.2, 0.05, 0.2)]
    figures = fidelity_vs_kvpress.figures([ours], peers)
    assert figures["balanced kl"].value == 0.5
    assert figures["kvpress KVzip 0.2 bytes"].value == 1.0

"""The GPU benchmarks run from end to end on toy shapes, in Triton's interpreter."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")


from benchmarks.figures import Figure
from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.figures import Recorder
from benchmarks.gpu.head_lengths import ROWS_KEPT, head_lengths
from benchmarks.gpu.measures import measured
from benchmarks.gpu.pool import fill
from benchmarks.gpu.retain import blocks
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.sizes import TINY
from services.decode.engine import cuda_graph
from tests.pretended_cuda.tensors import DeviceTensor

# what the first run measures, and the figures of each part that documents name
FIGURES = {
    "ceilings": {"copy_bandwidth", "matrix_rate"},
    "attention": {
        "ragged_bandwidth_ratio",
        "skew_ratio",
        "score_return_ratio",
        "speed_up_by_rows_at_0.125",
        "ragged_bandwidth_ratio_int8/int4",
    },
    "small-pages": {"ragged_bandwidth_ratio_small_pages"},
    "one-sequence": {"one_sequence_seconds_short", "one_sequence_seconds_long"},
    "retention": {"retain_seconds", "retain_seconds_each"},
    "column-mass": {"column_mass_all_seconds", "column_mass_sampled_seconds"},
    "gather": {"compact_bandwidth_ratio", "compact_layer_ratio"},
    "choosing": {"choose_seconds"},
    "step": {"step_of_limit_ratio_unfused", "resident_ratio_unfused", "static_step_ratio"},
    "step-fused": {"step_of_limit_ratio"},
    "engine": {"engine_step_seconds"},
}


# torch's compiler imports what torch itself calls outdated, and says that float32 could be faster
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:TensorFloat32:UserWarning")
@pytest.mark.parametrize("any_device", ["gpu"], indirect=True)
@pytest.mark.parametrize("part", FIGURES)
def test_figures_are_written_as_they_come(
    part: str, any_device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run on a device that rejects mixed devices, hidden waits and uncapturable operations."""
    if isinstance(torch.empty(0, device=any_device), DeviceTensor):
        # the compiler wants the device itself
        monkeypatch.setattr(cuda_graph, "fused_layers", lambda _: contextlib.nullcontext())
    setting = Setting(part, TINY, torch.device(any_device), tmp_path)
    file = tmp_path / f"{part}.json"
    recorder = Recorder(file, part, setting.machine, {"tiny": True})
    for count, (name, figure) in enumerate(measured(setting), 1):
        recorder.add(name, figure)
        document = json.loads(file.read_text())
        assert set(document) == {"part", "date", "machine", "versions", "conditions", "figures"}
        assert len(document["figures"]) == count
    assert FIGURES[part] <= set(document["figures"])


def test_shares_are_of_the_ceilings_that_were_measured_before(tmp_path: Path) -> None:
    setting = Setting("attention", TINY, torch.device("cpu"), tmp_path)
    assert not setting.ceilings().measured
    recorder = Recorder(tmp_path / "ceilings.json", "ceilings", "a machine", {})
    recorder.add("copy_bandwidth", Figure(3.5, "TB/s", "bytes"))
    recorder.add("matrix_rate", Figure(700.0, "TFLOP/s", "a product"))
    assert setting.ceilings() == Ceilings(3.5e12, 700e12)


def test_heads_have_room_for_all_blocks_that_are_timed() -> None:
    pool, once = blocks(TINY, torch.device("cpu"), tokens=8, calls=4)
    for _ in range(4):
        once()
    pool.check()
    # two heads grow by all of them
    assert int(pool.rows.max()) >= 32


def test_drawn_lengths_have_the_mean_and_the_skew() -> None:
    lengths = head_lengths(512, 4096).double()
    assert float(lengths.mean()) == pytest.approx(4096, rel=1e-3)
    found = torch.tensor(ROWS_KEPT, dtype=torch.float64)
    skew = float(found.std() / found.mean())
    assert float(lengths.std() / lengths.mean()) == pytest.approx(skew, rel=0.2)
    assert int(head_lengths(99, 1000, most=1500).max()) == 1500


def test_a_pool_has_a_page_of_its_own_for_every_row() -> None:
    rows = torch.tensor([[[0, 1, 17]], [[16, 33, 5]]], dtype=torch.int32)
    pool = fill(rows, TINY, spare_pages=4)
    held = [
        pool.batch.pages[b, 0, h, slot // TINY.page_rows]
        for b in range(2)
        for h in range(3)
        for slot in range(0, int(rows[b, 0, h]), TINY.page_rows)
    ]
    free = pool.free.ring[: int(pool.free.returned)]
    everything = torch.cat((torch.stack(held), free)).sort().values
    assert torch.equal(everything, torch.arange(pool.row_count // TINY.page_rows).int())

"""The GPU benchmarks run from end to end on toy shapes, in Triton's interpreter."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.gpu import column_mass, decode_attention, decode_step
from benchmarks.gpu.head_lengths import ROWS_KEPT, head_lengths
from benchmarks.gpu.pool import fill
from benchmarks.gpu.run import run
from benchmarks.gpu.sizes import TINY
from services.decode.engine import cuda_graph
from tests.pretended_cuda.tensors import DeviceTensor


@pytest.mark.parametrize("any_device", ["gpu"], indirect=True)
def test_every_figure_is_written(
    any_device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run on a device that rejects mixed devices, hidden waits and uncapturable operations."""
    out = tmp_path / "figures.json"
    if isinstance(torch.empty(0, device=any_device), DeviceTensor):
        # the compiler wants the device itself
        monkeypatch.setattr(cuda_graph, "fused_layers", lambda _: contextlib.nullcontext())
    assert run(TINY, torch.device(any_device), lambda found: out.write_text(json.dumps(found)))
    document = json.loads(out.read_text())
    assert set(document) == {"date", "machine", "versions", "conditions", "figures", "failed"}
    figures = document["figures"]
    assert all(set(figure) == {"value", "unit", "against", "target"} for figure in figures.values())
    assert all(figure["value"] > 0 for figure in figures.values())
    assert {
        "copy_bandwidth",
        "matrix_rate",
        "ragged_bandwidth_ratio",
        "skew_ratio",
        "score_return_ratio",
        "speed_up_by_rows_at_0.125",
        "column_mass_all_ratio",
        "column_mass_sampled_ratio",
        "compact_bandwidth_ratio",
        "ragged_bandwidth_ratio_int8/int4",
        "retain_seconds",
        "step_of_limit_ratio",
        "step_of_limit_ratio_unfused",
        "dense_step_ratio",
        "resident_ratio",
    } <= set(figures)


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are native in this session")
def test_a_part_that_fails_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no such kernel")

    for part in (decode_attention, decode_step, column_mass):
        monkeypatch.setattr(part, "measure", fails)
    monkeypatch.setattr(decode_step, "measure_fused", fails)
    kept: list[dict[str, Any]] = []
    assert not run(TINY, torch.device("cpu"), kept.append)
    assert kept[-1]["failed"] == [
        "decode attention",
        "column mass",
        "a decode step",
        "a fused decode step",
    ]
    assert {"copy_bandwidth", "compact_bandwidth_ratio", "retain_seconds"} <= set(
        kept[-1]["figures"]
    )


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

"""Measurements on a GPU equal those on a CPU, and their tensors are in host memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from services.prefill.calibration.query_filters import measure_filters
from services.prefill.calibration.retrieval_probe import probe_retrieval
from services.prefill.calibration.sensitivity import measure_sensitivity
from services.runtime.model.served_model import ServedModel, load_model


@pytest.fixture(scope="module")
def there(tiny_model: Path, any_device: str) -> ServedModel:
    return load_model(str(tiny_model), device=any_device)


@pytest.mark.parametrize("any_device", ["gpu"], indirect=True)
def test_all_three_measurements_equal_those_on_a_cpu(tiny_model: Path, there: ServedModel) -> None:
    found, expected = (measures(served) for served in (there, load_model(str(tiny_model))))
    for ours, others in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, others, atol=1e-4, rtol=1e-3)
    # its draws are the device's
    sensitivity = measure_sensitivity(there, 128)
    assert all(layer.device.type == "cpu" and (layer > 0).all() for layer in sensitivity)


def measures(served: ServedModel) -> list[torch.Tensor]:
    scores = probe_retrieval(served, 48)
    return [*scores.echo, *scores.induction, *measure_filters(served, 64)]

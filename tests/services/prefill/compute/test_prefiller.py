"""A prompt's cache is the same however it is chunked, comes layer by layer, and stops when told."""

from __future__ import annotations

import threading
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.attention_input import AttentionInput
from kvstore.cache import RaggedLayer
from kvstore.calibration import Calibration
from kvstore.policies import parse_policy
from services.prefill.calibration.query_filters import measure_filters
from services.prefill.calibration.retrieval_probe import probe_retrieval
from services.prefill.compute.prefiller import Prefiller
from services.prefill.compute.repetition import Repetition
from services.prefill.compute.stopped import PrefillStopped
from services.runtime.model.served_model import ServedModel, load_model
from tests.kvstore.policies.planning import SMALL
from tests.services.decode.engine.engine_parts import load_served

_TOKENS = 150
_POLICIES: dict[str, dict[str, object]] = {
    **SMALL,
    "fastgen": {"recovery": 0.7, "floor_rows": 8, "retrieval_ratio": 0.25},
    "coverage": {"recovery": 0.7, "floor_rows": 8, "windows": [8, 16, 32]},
}


@pytest.fixture(scope="module")
def served(tiny_model: Path) -> ServedModel:
    return load_served(tiny_model)


@pytest.fixture(scope="module")
def calibration(served: ServedModel) -> Calibration:
    return Calibration(probe_retrieval(served, 64), measure_filters(served, 128))


def prefill(
    served: ServedModel,
    prompt: list[int],
    policy: str,
    calibration: Calibration,
    chunk_tokens: int = 1 << 20,
) -> list[RaggedLayer]:
    """The layers of a prompt's cache."""
    layers: dict[int, RaggedLayer] = {}
    Prefiller(
        served,
        prompt,
        parse_policy(policy, _POLICIES[policy]),
        chunk_tokens=chunk_tokens,
        emit=layers.__setitem__,
        progress=lambda _: None,
        stop=threading.Event(),
        calibration=calibration,
    ).run()
    assert list(layers) == list(range(len(served.shapes)))
    return list(layers.values())


@pytest.fixture(scope="module")
def prompt(served: ServedModel) -> list[int]:
    return served.tokenizer.encode(topics["compound"])[:_TOKENS]


@pytest.fixture(scope="module")
def whole(
    served: ServedModel, prompt: list[int], calibration: Calibration
) -> dict[str, list[RaggedLayer]]:
    """Every policy's cache, the prompt computed in one go."""
    return {name: prefill(served, prompt, name, calibration) for name in _POLICIES}


@pytest.fixture(scope="module")
def served_there(tiny_model: Path, any_device: str) -> ServedModel:
    return load_model(str(tiny_model), device=any_device)


@pytest.mark.parametrize("any_device", ["gpu"], indirect=True)
@pytest.mark.parametrize("policy", _POLICIES)
def test_a_gpu_keeps_the_same(
    served_there: ServedModel,
    prompt: list[int],
    calibration: Calibration,
    whole: dict[str, list[RaggedLayer]],
    policy: str,
) -> None:
    there = prefill(served_there, prompt, policy, calibration)
    for layer, expected in zip(there, whole[policy], strict=True):
        assert layer.keys.is_cuda
        assert layer.rules == expected.rules
        assert layer.head_offsets == expected.head_offsets
        assert torch.equal(layer.positions.cpu(), expected.positions)
        torch.testing.assert_close(layer.keys.cpu(), expected.keys, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("policy", _POLICIES)
@settings(max_examples=4, deadline=None)
@given(chunk_tokens=st.integers(1, _TOKENS - 1))
def test_chunks_change_nothing(
    served: ServedModel,
    prompt: list[int],
    calibration: Calibration,
    whole: dict[str, list[RaggedLayer]],
    policy: str,
    chunk_tokens: int,
) -> None:
    chunked = prefill(served, prompt, policy, calibration, chunk_tokens)
    for layer, expected in zip(chunked, whole[policy], strict=True):
        assert layer.rules == expected.rules
        assert layer.head_offsets == expected.head_offsets
        assert torch.equal(layer.positions, expected.positions)
        assert torch.equal(layer.flags, expected.flags)
        torch.testing.assert_close(layer.keys, expected.keys, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(layer.values, expected.values, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(layer.scores, expected.scores, rtol=1e-4, atol=1e-4)
        assert layer.recovered == pytest.approx(expected.recovered, abs=1e-5)


def test_the_compressing_policies_leave_something_out(whole: dict[str, list[RaggedLayer]]) -> None:
    rows = {name: sum(layer.rows for layer in layers) for name, layers in whole.items()}
    assert rows.pop("full") == 4 * _TOKENS
    assert max(rows.values()) < 4 * _TOKENS


class Run:
    """A prefill that notes what it says, and stops when so many layers have been emitted."""

    def __init__(
        self,
        served: ServedModel,
        prompt: list[int],
        chunk_tokens: int = 64,
        policy: str = "full",
    ) -> None:
        self.emitted: list[int] = []
        self.progress: list[int] = []
        self.stop = threading.Event()
        self.stop_after_layers = len(served.shapes) + 1
        self.stop_after_tokens = len(prompt)
        self.prefiller = Prefiller(
            served,
            prompt,
            parse_policy(policy, _POLICIES[policy]),
            chunk_tokens=chunk_tokens,
            emit=self._emit,
            progress=self._progress,
            stop=self.stop,
        )

    def _emit(self, index: int, layer: RaggedLayer) -> None:
        self.emitted.append(index)
        if len(self.emitted) == self.stop_after_layers:
            self.stop.set()

    def _progress(self, done: int) -> None:
        self.progress.append(done)
        if done >= self.stop_after_tokens:
            self.stop.set()


def test_layers_leave_in_order_during_the_last_chunk_alone(
    served: ServedModel, prompt: list[int]
) -> None:
    run = Run(served, prompt)
    run.prefiller.run()
    assert run.emitted == [0, 1]
    assert run.progress == [64, 128]
    assert run.prefiller.clock.seconds("prefill") > 0


def test_a_stop_is_obeyed_before_the_next_layer(served: ServedModel, prompt: list[int]) -> None:
    run = Run(served, prompt)
    run.stop_after_layers = 1
    with pytest.raises(PrefillStopped):
        run.prefiller.run()
    assert run.emitted == [0]


def test_a_stop_between_chunks_emits_nothing(served: ServedModel, prompt: list[int]) -> None:
    run = Run(served, prompt)
    run.stop_after_tokens = 64
    with pytest.raises(PrefillStopped):
        run.prefiller.run()
    assert (run.emitted, run.progress) == ([], [64])


def test_a_policy_of_the_whole_cache_ships_after_the_last_layer(
    served: ServedModel, prompt: list[int]
) -> None:
    run = Run(served, prompt, policy="reconstruction")
    seen: list[tuple[int, int]] = []
    attend = run.prefiller.attend

    def noting(inputs: AttentionInput) -> torch.Tensor:
        seen.append((inputs.layer, len(run.emitted)))
        return attend(inputs)

    run.prefiller.attend = noting  # type: ignore[method-assign]
    run.prefiller.run()
    assert run.emitted == [0, 1]
    assert len(seen) == 2 * 3
    assert {emitted for _, emitted in seen} == {0}


def test_a_stop_ends_the_second_pass(
    served: ServedModel, prompt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(served, prompt, policy="reconstruction")
    passes: list[int] = []

    def stopping(self: Repetition, inputs: AttentionInput) -> torch.Tensor:
        passes.append(inputs.layer)
        run.stop.set()
        return attend(self, inputs)

    attend = Repetition.attend
    monkeypatch.setattr(Repetition, "attend", stopping)
    with pytest.raises(PrefillStopped):
        run.prefiller.run()
    assert (passes, run.emitted) == ([0], [])

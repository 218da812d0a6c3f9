"""Chunk sizes do not change a prompt's cache; layers come in order; a set `stop` ends it."""

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
from services.prefill.compute.prefiller import Prefiller, PrefillStopped
from services.prefill.compute.repetition import Repetition
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
def unchunked(
    served: ServedModel, prompt: list[int], calibration: Calibration
) -> dict[str, list[RaggedLayer]]:
    """The cache of every policy, with the prompt computed in one chunk."""
    return {name: prefill(served, prompt, name, calibration) for name in _POLICIES}


@pytest.fixture(scope="module")
def served_on_device(tiny_model: Path, any_device: str) -> ServedModel:
    return load_model(str(tiny_model), device=any_device)


@pytest.mark.parametrize("any_device", ["gpu"], indirect=True)
@pytest.mark.parametrize("policy", _POLICIES)
def test_a_gpu_keeps_the_same_rows(
    served_on_device: ServedModel,
    prompt: list[int],
    calibration: Calibration,
    unchunked: dict[str, list[RaggedLayer]],
    policy: str,
) -> None:
    on_device = prefill(served_on_device, prompt, policy, calibration)
    for layer, expected in zip(on_device, unchunked[policy], strict=True):
        assert layer.keys.is_cuda
        assert layer.rules == expected.rules
        assert layer.head_offsets == expected.head_offsets
        assert torch.equal(layer.positions.cpu(), expected.positions)
        torch.testing.assert_close(layer.keys.cpu(), expected.keys, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("policy", _POLICIES)
@settings(max_examples=4, deadline=None)
@given(chunk_tokens=st.integers(1, _TOKENS - 1))
def test_chunk_sizes_do_not_change_the_cache(
    served: ServedModel,
    prompt: list[int],
    calibration: Calibration,
    unchunked: dict[str, list[RaggedLayer]],
    policy: str,
    chunk_tokens: int,
) -> None:
    chunked = prefill(served, prompt, policy, calibration, chunk_tokens)
    for layer, expected in zip(chunked, unchunked[policy], strict=True):
        assert layer.rules == expected.rules
        assert layer.head_offsets == expected.head_offsets
        assert torch.equal(layer.positions, expected.positions)
        assert torch.equal(layer.flags, expected.flags)
        torch.testing.assert_close(layer.keys, expected.keys, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(layer.values, expected.values, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(layer.scores, expected.scores, rtol=1e-4, atol=1e-4)
        assert layer.attention_coverage == pytest.approx(expected.attention_coverage, abs=1e-5)


def test_the_compressing_policies_drop_rows(unchunked: dict[str, list[RaggedLayer]]) -> None:
    rows = {name: sum(layer.rows for layer in layers) for name, layers in unchunked.items()}
    assert rows.pop("full") == 4 * _TOKENS
    assert max(rows.values()) < 4 * _TOKENS


class Run:
    """A prefill that records its callbacks and stops after given layers or tokens."""

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


def test_layers_are_emitted_in_order_during_the_last_chunk(
    served: ServedModel, prompt: list[int]
) -> None:
    run = Run(served, prompt)
    run.prefiller.run()
    assert run.emitted == [0, 1]
    assert run.progress == [64, 128]
    assert run.prefiller.clock.seconds("prefill") > 0


def test_a_stop_ends_the_computation_before_the_next_layer(
    served: ServedModel, prompt: list[int]
) -> None:
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


def test_a_policy_of_the_complete_cache_emits_after_the_last_layer(
    served: ServedModel, prompt: list[int]
) -> None:
    run = Run(served, prompt, policy="reconstruction")
    seen: list[tuple[int, int]] = []
    attend = run.prefiller.attend

    def recording(inputs: AttentionInput) -> torch.Tensor:
        seen.append((inputs.layer, len(run.emitted)))
        return attend(inputs)

    run.prefiller.attend = recording  # type: ignore[method-assign]
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

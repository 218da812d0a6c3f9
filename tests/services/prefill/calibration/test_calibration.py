"""Probes against obvious definitions, heads that are known to copy, and artefacts on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kvstore.attention_input import AttentionInput
from kvstore.calibration import Calibration, RetrievalScores
from kvstore.policies import parse_policy
from services.evaluation.attention_hooks import DenseAttention
from services.prefill.calibration import calibrations as calibrations_module
from services.prefill.calibration.artefacts import Artefact, read_artefact, write_artefact
from services.prefill.calibration.calibrations import Calibrations
from services.prefill.calibration.query_filters import _filters, measure_filters
from services.prefill.calibration.retrieval_probe import _CopyAttention, probe_retrieval
from services.prefill.calibration.sensitivity import measure_sensitivity
from services.prefill.calibration.texts import spread_texts
from services.runtime.model.forward_pass import forward
from services.runtime.model.served_model import ServedModel
from tests.services.decode.engine.engine_parts import load_served

_COPY = 12
_SCALE = 0.25


@pytest.fixture(scope="module")
def served(tiny_model: Path) -> ServedModel:
    return load_served(tiny_model)


def _copied(shift: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys of four equal copies whose queries match the key `shift` after theirs."""
    torch.manual_seed(0)
    one = torch.nn.functional.normalize(torch.randn(1, _COPY, 16), dim=-1)
    keys = one.repeat(1, 4, 1)
    return 200 * keys.roll(-shift, 1), keys


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("sharp", [False, True])
def test_scores_are_the_mean_attention_to_earlier_copies(sharp: bool, window: int | None) -> None:
    q, k = _copied(1)
    if not sharp:
        q, k = torch.randn(4, 4 * _COPY, 16), torch.randn(2, 4 * _COPY, 16)
    hook = _CopyAttention(_COPY)
    hook.attend(AttentionInput(0, q[None], k[None], torch.randn_like(k)[None], _SCALE, window))
    n, group = q.shape[1], q.shape[0] // k.shape[0]
    distance = torch.arange(n)[:, None] - torch.arange(n)
    hidden = (distance < 0) | (distance >= (window or n))
    logits = q.double() @ k.double().repeat_interleave(group, 0).mT * _SCALE
    mass = logits.masked_fill(hidden, -torch.inf).softmax(-1)[:, _COPY:]
    for scores, offset in ((hook.echo, 0), (hook.induction, 1)):
        back = distance[_COPY:] + offset
        copies = (back % _COPY == 0) & (back > 0)
        # nothing stands before the first column that it could come after
        copies[:, :offset] = False
        expected = mass.where(copies, 0.0).sum(-1).mean(-1).view(k.shape[0], group).amax(1)
        torch.testing.assert_close(scores[0].double(), expected, atol=1e-5, rtol=1e-4)


def test_copying_and_echoing_heads_are_distinguished() -> None:
    for shift, high, low in ((1, "induction", "echo"), (0, "echo", "induction")):
        q, k = _copied(shift)
        hook = _CopyAttention(_COPY)
        hook.attend(AttentionInput(0, q[None], k[None], torch.randn_like(k)[None], _SCALE, None))
        assert float(getattr(hook, high)[0]) > 0.6
        assert float(getattr(hook, low)[0]) < 0.1


def test_the_probe_scores_every_kv_head(served: ServedModel) -> None:
    scores = probe_retrieval(served, 32)
    again = probe_retrieval(served, 32)
    for series in (scores.induction, scores.echo):
        assert [of.shape for of in series] == [(shape.kv_heads,) for shape in served.shapes]
        assert all(((of >= 0) & (of <= 1)).all() for of in series)
    assert all(torch.equal(a, b) for a, b in zip(scores.echo, again.echo, strict=True))


def test_filters_are_the_queries_first_singular_vectors(served: ServedModel) -> None:
    found = measure_filters(served, 40)
    hook = _QueryNotes()
    _read_the_same_texts(served, hook, 40)
    for layer, shape in enumerate(served.shapes):
        every = torch.cat(hook.queries[layer], 1).double()
        _, _, v = torch.linalg.svd(every, full_matrices=False)
        first = v[:, 0]
        towards = (every @ first[:, :, None]).mean((1, 2))
        expected = (first * towards.sign()[:, None]).view(shape.kv_heads, shape.group, -1).mean(1)
        torch.testing.assert_close(found[layer].double(), expected, atol=1e-4, rtol=1e-3)


class _QueryNotes:
    """An `AttentionHook` that notes every query."""

    def __init__(self) -> None:
        self.queries: dict[int, list[torch.Tensor]] = {}

    def attend(self, inputs: AttentionInput) -> torch.Tensor:
        q, k, v = inputs.q, inputs.k, inputs.v
        self.queries.setdefault(inputs.layer, []).append(q[0].clone())
        keys = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        values = v.repeat_interleave(q.shape[1] // k.shape[1], 1)
        out = torch.nn.functional.scaled_dot_product_attention(
            q, keys, values, is_causal=True, scale=inputs.scale
        )
        return out.transpose(1, 2)


def _read_the_same_texts(served: ServedModel, hook: _QueryNotes, tokens: int) -> None:
    from pydoc_data.topics import topics

    ids = served.tokenizer.encode("\n\n".join(topics[name] for name in sorted(topics)))
    for number in range(4):
        first = number * (len(ids) - tokens) // 4
        text = torch.tensor(ids[first : first + tokens])
        forward(served, text[None], torch.arange(tokens)[None], hook, logits=False)


def test_queries_project_positively_on_filters() -> None:
    torch.manual_seed(1)
    centre = torch.randn(4, 1, 8) * 3
    queries = (centre + torch.randn(4, 200, 8)).double()
    found = _filters(queries.mT @ queries, queries.sum(1), 4)
    assert ((queries.float() @ found[:, :, None]).mean((1, 2)) > 0).all()


def test_most_retrieval_heads_are_taken_by_induction_then_echo() -> None:
    induction = tuple(torch.tensor([0.1 * layer, 0.0]) for layer in range(10))
    echo = tuple(torch.tensor([0.0, 0.1 * layer]) for layer in range(10))
    scores = RetrievalScores(induction, echo)
    assert scores.heads(0.15) == {(9, 0), (8, 0), (9, 1)}
    assert len(scores.heads(0.5)) == 10
    assert scores.heads(1.0) == {(layer, head) for layer in range(10) for head in range(2)}
    assert Calibration(scores).retrieval_heads(0.0) == frozenset()


def test_artefacts_are_measured_once_and_read_again(
    served: ServedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def probe(model: ServedModel) -> RetrievalScores:
        measured.append(model)
        return probe_retrieval(model, 16)

    monkeypatch.setattr(calibrations_module, "probe_retrieval", probe)
    policy = parse_policy("coverage", {"retrieval_ratio": 0.5})
    first = Calibrations(served, tmp_path)
    plain = first.needed_by(parse_policy("coverage", {"retrieval_ratio": 0}))
    assert plain.retrieval is None
    assert not list(tmp_path.iterdir())
    asked = [source.needed_by(policy) for source in (first, first, Calibrations(served, tmp_path))]
    assert len(measured) == 1
    heads = [found.retrieval_heads(0.5) for found in asked]
    assert heads[0] == heads[1] == heads[2]
    assert len(heads[0]) == 2
    assert served.fingerprint.weights_digest in first.path(Artefact.RETRIEVAL).name


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_artefact_counts_as_none(tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "artefact.safetensors"
    series = {"echo": (torch.rand(2), torch.rand(3))}
    write_artefact(path, series)
    found = read_artefact(path, "echo")
    assert found is not None
    assert all(torch.equal(a, b) for a, b in zip(found["echo"], series["echo"], strict=True))
    path.unlink() if damage is None else path.write_bytes(damage)
    assert read_artefact(path, "echo") is None
    assert [entry.name for entry in tmp_path.iterdir()] == ([] if damage is None else [path.name])


def test_only_policies_with_filters_ask_for_them(tmp_path: Path, served: ServedModel) -> None:
    filters = Calibrations(served, tmp_path)
    write_artefact(
        filters.path(Artefact.FILTERS), {"filters": (torch.ones(2, 16), torch.zeros(2, 16))}
    )
    found = filters.needed_by(parse_policy("qfilters", {})).filters
    assert found is not None
    assert len(found) == 2
    assert filters.needed_by(parse_policy("h2o", {})).filters is None


class _Disturbed(DenseAttention):
    """Adds `noise` `[n, D]` to one query head's output."""

    def __init__(self, layer: int, head: int, noise: torch.Tensor) -> None:
        self._at, self._head, self._noise = layer, head, noise

    def attend(self, inputs: AttentionInput) -> torch.Tensor:
        out = super().attend(inputs).clone()
        if inputs.layer == self._at:
            out[0, :, self._head] += self._noise
        return out


def test_sensitivity_predicts_the_effect_of_an_error(served: ServedModel) -> None:
    """Noise in one head's output, and the divergence that it causes over all tokens."""
    torch.manual_seed(3)
    tokens, size = 192, served.shapes[0].head_size
    found = measure_sensitivity(served, tokens)
    ids = next(spread_texts(served, 1, tokens))
    positions = torch.arange(tokens)[None]

    def likelihoods(noise: torch.Tensor, layer: int, head: int) -> torch.Tensor:
        hook = _Disturbed(layer, head, noise)
        with torch.inference_mode():
            output = served.model(
                input_ids=ids[None],
                position_ids=positions,
                use_cache=False,
                headwise=hook,
                headwise_shapes=served.shapes,
            )
        return output.logits[0].double().log_softmax(-1)

    exact = likelihoods(torch.zeros(tokens, size), 0, 0)
    for layer, shape in enumerate(served.shapes):
        for head in range(shape.query_heads):
            noise = 0.003 * torch.randn(tokens, size)
            noise[:64] = 0.0
            cost = (exact.exp() * (exact - likelihoods(noise, layer, head))).sum()
            expected = found[layer][head].square() * noise.square().sum() / 2
            # both are means of few draws
            assert 0.7 < float(cost / expected) < 1.4


def test_sensitivity_is_measured_once_for_all_policies(
    tmp_path: Path, served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also among computations that want no gradients; and only a policy that uses it has it."""
    asked = []

    def measure(model: ServedModel) -> tuple[torch.Tensor, ...]:
        asked.append(model)
        return measure_sensitivity(model, 128)

    monkeypatch.setattr(calibrations_module, "measure_sensitivity", measure)
    first = Calibrations(served, tmp_path)
    assert first.needed_by(parse_policy("lookback", {})).sensitivity is None
    policy = parse_policy("lookback", {"sensitivity": True})
    with torch.inference_mode():
        found = [
            source.needed_by(policy).sensitivity
            for source in (first, first, Calibrations(served, tmp_path))
        ]
    assert len(asked) == 1
    expected = measure_sensitivity(served, 128)
    for one in found:
        assert one is not None
        for of_layer, same in zip(one, expected, strict=True):
            assert torch.equal(of_layer, same)


def test_a_folder_that_cannot_be_written_costs_a_measurement_alone(
    served: ServedModel, caplog: pytest.LogCaptureFixture
) -> None:
    calibrations = Calibrations(served, Path("/proc/headwise"))
    first = calibrations.filters()
    assert calibrations.filters() is first
    assert "--model-cache /proc/headwise cannot be written" in caplog.text

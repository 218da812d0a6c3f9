"""The fidelity benchmark on a tiny model: it runs, and sees no difference where there is none."""

import json

import pytest
import torch

from benchmarks import fidelity, policies, policy_settings, settings
from kvstore.policies import known_policies
from kvstore.policies.coverage import Coverage
from kvstore.policies.fastgen import FastGen
from kvstore.policies.full import Full
from services.evaluation.forced_runs import with_later_kept, with_rules
from services.evaluation.passages import OFFSETS, Passage, hidden_keys, passages
from services.evaluation.prompt_record import PromptRecord
from services.evaluation.settings import Setting, parse_setting
from services.evaluation.teacher_forcing import compare, dense_logits, kept_logits
from services.runtime.model.served_model import load_model


@pytest.fixture(scope="module")
def served(tiny_model):
    return load_model(str(tiny_model))


def text(tokens, first=0):
    return tuple((first + 7 * n * n) % 500 for n in range(tokens))


@pytest.fixture
def passage():
    both = text(60)
    return Passage(both[:48], both[48:-1], both[49:])


def test_the_benchmark_writes_every_figure(tiny_model, tmp_path):
    out = tmp_path / "figures.json"
    sizes = ["--prompt-tokens", "80", "--fed-tokens", "4", "--long-tokens", "8", "--passages", "3"]
    fidelity.main(["--model", str(tiny_model), *sizes, "--json", str(out)])
    document = json.loads(out.read_text())
    found = document["figures"]
    assert set(document) == {"date", "machine", "conditions", "figures"}
    assert all(set(f) == {"value", "unit", "against", "target"} for f in found.values())
    for part in ("", "_decoding", "_copying"):
        assert found[f"full{part}_kl"]["value"] == pytest.approx(0, abs=1e-6)
        assert found[f"full{part}_rows"]["value"] == 1
        assert found[f"full{part}_top1"]["value"] == 1
    assert {"fastgen_t95_rows", "fastgen_t95_kl", "fastgen_t95_no_frequent_rows"} <= set(found)
    assert len(found) > 6 * (len(settings.LATER_KEPT) + len(settings.RULES_ON))


@pytest.mark.parametrize("measure", [with_later_kept, with_rules])
def test_full_diverges_nowhere_and_a_small_cache_does(served, passage, measure):
    small = FastGen(recovery=0.1, floor_rows=0, sinks=0)
    compared = (Setting("full", Full()), Setting("small", small))
    full, little = measure(served, (passage,), compared, lambda: None)
    assert float(full.divergence.kl.abs().max()) < 1e-6
    assert (full.rows, full.final_rows) == (1, 1)
    assert float(little.divergence.kl.mean()) > 1e-3
    assert little.rows < 1


def test_rules_that_never_drop_agree_with_keeping_all(served, passage):
    # a floor longer than everything fed: nothing is ever due to go
    same = (Setting("floor", Coverage(recovery=0.5, floor_rows=4096)),)
    (kept,) = with_later_kept(served, (passage,), same, lambda: None)
    (ruled,) = with_rules(served, (passage,), same, lambda: None)
    torch.testing.assert_close(ruled.divergence.kl, kept.divergence.kl, atol=1e-6, rtol=0)
    torch.testing.assert_close(ruled.divergence.loss, kept.divergence.loss, atol=1e-5, rtol=0)


def test_rows_and_bytes_at_the_end_are_counted(served, passage):
    policy = Coverage(recovery=0.3, windows=(4,), sinks=2, floor_rows=0)
    measured = with_rules(served, (passage,), (Setting("small", policy),), lambda: None)[0]
    layers = PromptRecord(served, passage.prompt).compact(policy)
    held = sum(layer.rows for layer in layers)
    assert measured.rows == pytest.approx(held / (4 * 48))
    # a fixed budget and a fixed window: the rows stay the same while the text grows
    assert measured.final_rows == pytest.approx(held / (4 * (48 + len(passage.continuation))))
    assert measured.bytes == pytest.approx(sum(layer.nbytes for layer in layers) / (4 * 48 * 128))


@pytest.mark.parametrize("way", [with_rules, with_later_kept])
def test_coded_rows_are_measured_as_they_are_held(served, passage, way):
    exact, coded, coarse = way(
        served,
        (passage,),
        tuple(parse_setting(text) for text in ("full", "full@int8", "full@int4")),
        lambda: None,
    )
    kls = [float(one.divergence.kl.mean()) for one in (exact, coded, coarse)]
    assert kls[0] < 1e-6 < kls[1] < 0.1 * kls[2]
    # keys, values and their scales, and a position: of 128 bytes
    assert coded.bytes == pytest.approx((2 * (16 + 2) + 4) / 128)
    assert coded.costs["fp16_bytes"] == pytest.approx(2 * coded.bytes)


def test_divergence_is_computed_from_probabilities():
    exact, measured = torch.randn(5, 11).double(), torch.randn(5, 11).double()
    targets = (0, 3, 10, 2, 2)
    found = compare(exact, measured, targets)
    p, q = exact.softmax(-1), measured.softmax(-1)
    for row in range(5):
        assert float(found.kl[row]) == pytest.approx(
            float((p[row] * (p[row] / q[row]).log()).sum())
        )
        assert float(found.loss[row]) == pytest.approx(-float(q[row, targets[row]].log()))
        assert float(found.agreed[row]) == float(p[row].argmax() == q[row].argmax())


def test_the_full_policy_gives_the_logits_of_a_dense_forward(served, passage):
    with torch.no_grad():
        layers = PromptRecord(served, passage.prompt).compact(Full())
        kept = kept_logits(served, layers, len(passage.prompt), passage.continuation)
        exact = dense_logits(served, passage.prompt, passage.continuation)
    torch.testing.assert_close(kept, exact, atol=1e-4, rtol=1e-4)


def test_passages_and_hidden_keys_are_cut_to_size(served):
    for passage in passages(served, 80, 5):
        assert (len(passage.prompt), len(passage.continuation), len(passage.targets)) == (80, 5, 5)
        assert passage.targets[:-1] == passage.continuation[1:]
    assert len(passages(served, 80, 5)) == len(OFFSETS)
    for case in hidden_keys(served, 80):
        assert len(case.prompt) == 80
        assert case.key in served.tokenizer.decode(case.prompt)


def test_the_comparison_of_policies_writes_every_figure(tiny_model, tmp_path):
    out = tmp_path / "figures.json"
    sizes = [
        "--prompt-tokens",
        "80",
        "--fed-tokens",
        "4",
        "--probe-tokens",
        "32",
        "--passages",
        "3",
    ]
    probed = ["--probe-tokens", "32"]
    policies.main(["--model", str(tiny_model), *sizes, *probed, "--json", str(out)])
    found = json.loads(out.read_text())["figures"]
    of_default = {"kl_default_at_30", "kl_default_at_20", "kl_default_at_10", "kl_ratio_h2o_20"}
    assert of_default <= set(found)
    assert len(found) - len(of_default) == 6 * len(policy_settings.SIZES) + len(
        policy_settings.PASS_KEY
    )
    assert all(set(f) == {"value", "unit", "against", "target"} for f in found.values())
    named = {setting.policy.name for setting in policy_settings.SIZES}
    measured_elsewhere = {"full", "fastgen"}
    assert named | measured_elsewhere == {name for name, _ in known_policies()}

"""Choosing tokens: greedy, within top-k and top-p, by the right frequencies, repeatably."""

from __future__ import annotations

import collections

import pytest
import torch

from services.decode.sampling import Choice, Prediction, Sampler, SamplingParameters

_CPU = torch.device("cpu")
_PROBABILITIES = torch.tensor([0.5, 0.25, 0.15, 0.1])
_LOGITS = _PROBABILITIES.log()


def _choose(sampler: Sampler, logits: torch.Tensor) -> Choice:
    (predicted,) = Prediction.of_each(logits[None])
    return sampler.choose(predicted)


def _draws(parameters: SamplingParameters, count: int = 2000) -> collections.Counter[int]:
    sampler = Sampler(parameters, (), _CPU)
    return collections.Counter(_choose(sampler, _LOGITS).token_id for _ in range(count))


def test_greedy_takes_the_likeliest_whatever_else_is_set() -> None:
    assert set(_draws(SamplingParameters(0.0, top_k=3, top_p=0.9, seed=1), 5)) == {0}


def test_frequencies_are_the_softmax_of_the_tempered_logits() -> None:
    draws = _draws(SamplingParameters(temperature=2.0, seed=3), 8000)
    expected = (_LOGITS / 2).softmax(-1)
    for token, probability in enumerate(expected.tolist()):
        # four standard deviations
        spread = 4 * (probability * (1 - probability) / 8000) ** 0.5
        assert draws[token] / 8000 == pytest.approx(probability, abs=spread)


def test_top_k_draws_only_from_the_k_likeliest() -> None:
    assert set(_draws(SamplingParameters(1.0, top_k=2, seed=5))) == {0, 1}


def test_top_p_draws_only_from_the_smallest_set_of_that_probability() -> None:
    assert set(_draws(SamplingParameters(1.0, top_p=0.7, seed=5))) == {0, 1}
    assert set(_draws(SamplingParameters(1.0, top_p=0.4, seed=5))) == {0}


def test_equal_seeds_repeat_and_absent_ones_do_not() -> None:
    def run(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingParameters(1.0, seed=seed), (), _CPU)
        return [_choose(sampler, _LOGITS).token_id for _ in range(64)]

    assert run(7) == run(7)
    assert run(7) != run(8)
    assert run(None) != run(None)
    # the largest seed the contract allows
    assert run(2**64 - 1) == run(2**64 - 1)


@pytest.mark.parametrize(
    "parameters",
    [
        SamplingParameters(temperature=1e-300, seed=1),
        SamplingParameters(temperature=5e-324, seed=1),
        SamplingParameters(temperature=1e-7, seed=1),
        SamplingParameters(temperature=1.0, top_p=5e-324, seed=1),
    ],
)
def test_extreme_values_tend_to_greedy(parameters: SamplingParameters) -> None:
    assert set(_draws(parameters, 20)) == {0}


def test_values_without_effect_draw_from_everything() -> None:
    draws = _draws(SamplingParameters(100.0, top_k=2**32 - 1, top_p=1.0, seed=1))
    assert set(draws) == {0, 1, 2, 3}


def test_min_p_draws_only_what_is_likely_enough_beside_the_likeliest() -> None:
    assert set(_draws(SamplingParameters(1.0, min_p=0.4, seed=5))) == {0, 1}


def test_presence_and_frequency_count_what_was_generated_and_not_the_prompt() -> None:
    def greedy(parameters: SamplingParameters) -> list[int]:
        sampler = Sampler(parameters, (0, 0, 0), _CPU)
        return [_choose(sampler, torch.tensor([3.0, 2.5, 0.0])).token_id for _ in range(4)]

    assert greedy(SamplingParameters()) == [0, 0, 0, 0]
    assert greedy(SamplingParameters(presence_penalty=1.0)) == [0, 1, 0, 0]
    # after 0, 1, 0 the logits are 1.8, 1.9
    assert greedy(SamplingParameters(frequency_penalty=0.6)) == [0, 1, 0, 1]


def test_repetition_counts_the_prompt_too() -> None:
    sampler = Sampler(SamplingParameters(repetition_penalty=2.0), (0,), _CPU)
    assert _choose(sampler, torch.tensor([3.0, 2.0, 0.0])).token_id == 1


def test_logprobs_are_the_models_own_whatever_is_chosen() -> None:
    logits = torch.tensor([0.5, 2.0, -1.0, 1.0])
    exact = logits.double().log_softmax(-1)
    parameters = SamplingParameters(temperature=5.0, seed=1, repetition_penalty=3.0, logprobs=2)
    sampler = Sampler(parameters, (1,), _CPU)
    for _ in range(20):
        choice = _choose(sampler, logits)
        (told,) = choice.logprobs
        assert told.logprob == pytest.approx(float(exact[choice.token_id]), abs=1e-6)
        assert [token for token, _ in told.top] == [1, 3]
        assert [p for _, p in told.top] == pytest.approx(exact[[1, 3]].tolist(), abs=1e-6)
    assert _choose(Sampler(SamplingParameters(), (), _CPU), logits).logprobs == ()


def test_each_answer_has_a_seed_of_its_own() -> None:
    parameters = SamplingParameters(1.0, seed=2**64 - 1)
    assert parameters.for_answer(0) == parameters
    assert parameters.for_answer(3).seed == 2
    assert SamplingParameters(1.0).for_answer(3).seed is None

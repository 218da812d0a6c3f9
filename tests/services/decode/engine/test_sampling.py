"""Choosing tokens: greedy or drawn, penalized, told of, repeatably, and each for itself."""

from __future__ import annotations

import collections
from collections.abc import Sequence

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from headwise.errors import HeadwiseError
from services.decode.engine.sampling import Choice, Sampler, SamplingParameters, choose

_PROBABILITIES = torch.tensor([0.5, 0.25, 0.15, 0.1])
_LOGITS = _PROBABILITIES.log()


def _choose(sampler: Sampler, logits: torch.Tensor) -> Choice:
    (choice,) = choose([sampler], logits[None])
    assert isinstance(choice, Choice)
    return choice


def _tokens(choices: Sequence[Choice | HeadwiseError]) -> list[int]:
    return [choice.token_id for choice in choices if isinstance(choice, Choice)]


def _draws(parameters: SamplingParameters, count: int = 2000) -> collections.Counter[int]:
    sampler = Sampler(parameters, ())
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


def test_equal_seeds_repeat_and_absent_ones_do_not() -> None:
    def run(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingParameters(1.0, seed=seed), ())
        return [_choose(sampler, _LOGITS).token_id for _ in range(64)]

    assert run(7) == run(7)
    assert run(7) != run(8)
    assert run(None) != run(None)
    # the largest seed the contract allows
    assert run(2**64 - 1) == run(2**64 - 1)
    assert run(2**64 - 1) != run(2**64 - 2)


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


def test_presence_and_frequency_count_what_was_generated_and_not_the_prompt() -> None:
    def greedy(parameters: SamplingParameters) -> list[int]:
        sampler = Sampler(parameters, (0, 0, 0))
        return [_choose(sampler, torch.tensor([3.0, 2.5, 0.0])).token_id for _ in range(4)]

    assert greedy(SamplingParameters()) == [0, 0, 0, 0]
    assert greedy(SamplingParameters(presence_penalty=1.0)) == [0, 1, 0, 0]
    # after 0, 1, 0 the logits are 1.8, 1.9
    assert greedy(SamplingParameters(frequency_penalty=0.6)) == [0, 1, 0, 1]


def test_repetition_counts_the_prompt_too() -> None:
    sampler = Sampler(SamplingParameters(repetition_penalty=2.0), (0,))
    assert _choose(sampler, torch.tensor([3.0, 2.0, 0.0])).token_id == 1


def test_repetition_is_that_of_transformers() -> None:
    generator = torch.Generator().manual_seed(1)
    sampler = Sampler(SamplingParameters(repetition_penalty=1.3), (3, 5, 3))
    peer = RepetitionPenaltyLogitsProcessor(1.3)
    for _ in range(20):
        logits = torch.randn(8, generator=generator)
        expected = peer(torch.tensor([sampler.token_ids]), logits[None]).argmax()
        assert _choose(sampler, logits).token_id == expected


def test_logprobs_are_the_models_own_whatever_is_chosen() -> None:
    logits = torch.tensor([0.5, 2.0, -1.0, 1.0])
    exact = logits.double().log_softmax(-1)
    parameters = SamplingParameters(temperature=5.0, seed=1, repetition_penalty=3.0, logprobs=2)
    sampler = Sampler(parameters, (1,))
    for _ in range(20):
        choice = _choose(sampler, logits)
        (told,) = choice.logprobs
        assert told.logprob == pytest.approx(float(exact[choice.token_id]), abs=1e-6)
        assert [token for token, _ in told.top] == [1, 3]
        assert [p for _, p in told.top] == pytest.approx(exact[[1, 3]].tolist(), abs=1e-6)
    assert _choose(Sampler(SamplingParameters(), ()), logits).logprobs == ()


def test_each_answer_has_a_seed_of_its_own() -> None:
    parameters = SamplingParameters(1.0, seed=2**64 - 1)
    assert parameters.for_answer(0) == parameters
    assert parameters.for_answer(3).seed == 2
    assert SamplingParameters(1.0).for_answer(3).seed is None


# all that a choice can depend on, greedy and drawn, so that each part of a batch has several
_MIXED = (
    SamplingParameters(),
    SamplingParameters(0.8, seed=1),
    SamplingParameters(0.8, top_k=3, seed=2, logprobs=3),
    SamplingParameters(logprobs=1),
    SamplingParameters(1.2, top_p=0.9, seed=3, presence_penalty=0.5),
    SamplingParameters(repetition_penalty=1.5, logprobs=2),
    SamplingParameters(3.0, top_k=900, top_p=0.99, seed=4, frequency_penalty=0.2),
    SamplingParameters(0.8, min_p=0.1, seed=5),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_choices_together_are_those_alone(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    together = [Sampler(parameters, (1, 2, 3)) for parameters in _MIXED]
    alone = [Sampler(parameters, (1, 2, 3)) for parameters in _MIXED]
    for _ in range(10):
        logits = torch.randn(len(_MIXED), 1000, generator=generator).to(dtype)
        before = logits.clone()
        choices = choose(together, logits)
        assert torch.equal(logits, before)
        for place, (sampler, choice) in enumerate(zip(alone, choices, strict=True)):
            assert isinstance(choice, Choice)
            expected = _choose(sampler, logits[place])
            assert choice.token_id == expected.token_id
            for told, by_itself in zip(choice.logprobs, expected.logprobs, strict=True):
                assert told.logprob == pytest.approx(by_itself.logprob, abs=1e-5)
                assert len(told.top) == len(by_itself.top) == _MIXED[place].logprobs
    assert [s.token_ids for s in together] == [s.token_ids for s in alone]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("parameters", _MIXED, ids=range(len(_MIXED)))
def test_logits_that_are_not_finite_fail_their_sequence_alone(
    parameters: SamplingParameters, value: float
) -> None:
    """Drawing from such logits on a GPU would end the process."""
    logits = torch.randn(3, 1000, generator=torch.Generator().manual_seed(2))
    whole = choose([Sampler(p, ()) for p in (parameters, _MIXED[4])], logits[:2])
    broken = logits.clone()
    broken[2, 7] = value
    samplers = [Sampler(p, ()) for p in (parameters, _MIXED[4], parameters)]
    *others, choice = choose(samplers, broken)
    assert isinstance(choice, HeadwiseError)
    assert choice.reason == "NOT_FINITE"
    assert not samplers[2].token_ids
    assert _tokens(others) == _tokens(whole)
    assert len(_tokens(whole)) == 2

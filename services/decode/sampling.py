"""Choosing the next token."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from headwise.results import TokenLogprobs

# float32 logits divided by less overflow, and there all probability lies with the likeliest anyway
_GREEDY_BELOW = 1e-6
# torch's generators take this many
_SEEDS = 1 << 64


@dataclasses.dataclass(frozen=True, slots=True)
class SamplingParameters:
    """Checked values; each default leaves the logits alone, and `temperature` 0 is greedy.

    `repetition_penalty` counts the prompt's tokens too, presence and frequency only generated ones.
    `logprobs`: how many of the likeliest tokens are told; 0 tells nothing of any.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logprobs: int = 0

    def for_answer(self, index: int) -> SamplingParameters:
        """Those of one of several answers to a prompt."""
        seed = None if self.seed is None else (self.seed + index) % _SEEDS
        return dataclasses.replace(self, seed=seed)


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """A token, and how likely it was, if that was asked for."""

    token_id: int
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What the model says of a sequence's next token: `logits` `[V]`, and the likeliest."""

    logits: torch.Tensor
    likeliest: int

    @classmethod
    def of_each(cls, logits: torch.Tensor) -> list[Prediction]:
        """One for each row of `[B, V]`; the device is waited for once, whatever B is."""
        likeliest = logits.argmax(-1).tolist()
        return [cls(row, token) for row, token in zip(logits, likeliest, strict=True)]


class OccurrencePenalty(LogitsProcessor):  # type: ignore[misc]
    """Takes `presence` off the logits of every generated token, and `frequency` per occurrence."""

    def __init__(self, presence: float, frequency: float, prompt_tokens: int) -> None:
        self._presence = presence
        self._frequency = frequency
        self._prompt_tokens = prompt_tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        generated = input_ids[0, self._prompt_tokens :]
        counts = torch.bincount(generated, minlength=scores.shape[-1])
        return scores - self._frequency * counts - self._presence * (counts > 0)


class Sampler:
    """One sequence's choice of tokens; equal seeds and logits give equal tokens.

    `token_ids` are all tokens so far, the prompt's first.
    """

    def __init__(
        self, parameters: SamplingParameters, prompt: Sequence[int], device: torch.device
    ) -> None:
        self.token_ids = list(prompt)
        self._penalties = _penalties(parameters, len(prompt))
        self._logprobs = parameters.logprobs
        self._greedy = parameters.temperature < _GREEDY_BELOW
        if not self._greedy:
            seed = secrets.randbits(63) if parameters.seed is None else parameters.seed
            self._generator = torch.Generator(device).manual_seed(seed)
            self._warpers = _warpers(parameters)

    def choose(self, predicted: Prediction) -> Choice:
        """The next token; it counts as generated from here on."""
        token = predicted.likeliest
        if self._penalties or not self._greedy:
            token = self._chosen(predicted.logits[None])
        self.token_ids.append(token)
        return Choice(token, _logprobs(predicted.logits, token, self._logprobs))

    def _chosen(self, scores: torch.Tensor) -> int:
        if self._penalties:
            seen = torch.tensor([self.token_ids], device=scores.device)
            scores = self._penalties(seen, scores.float())
        return int(scores.argmax()) if self._greedy else self._draw(scores.float())

    def _draw(self, scores: torch.Tensor) -> int:
        # these warpers look at the scores alone
        no_ids = torch.empty(1, 0, dtype=torch.long, device=scores.device)
        probabilities = self._warpers(no_ids, scores).softmax(-1)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


def _logprobs(logits: torch.Tensor, token: int, count: int) -> tuple[TokenLogprobs, ...]:
    """The model's own, before temperature and penalties."""
    if not count:
        return ()
    logprobs = logits.float().log_softmax(-1)
    top = logprobs.topk(min(count, len(logprobs)))
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return (TokenLogprobs(float(logprobs[token]), tuple(pairs)),)


def _penalties(parameters: SamplingParameters, prompt_tokens: int) -> LogitsProcessorList:
    penalties = LogitsProcessorList()
    if parameters.repetition_penalty != 1:
        penalties.append(RepetitionPenaltyLogitsProcessor(parameters.repetition_penalty))
    presence, frequency = parameters.presence_penalty, parameters.frequency_penalty
    if presence or frequency:
        penalties.append(OccurrencePenalty(presence, frequency, prompt_tokens))
    return penalties


def _warpers(parameters: SamplingParameters) -> LogitsProcessorList:
    warpers = LogitsProcessorList([TemperatureLogitsWarper(parameters.temperature)])
    if parameters.top_k:
        warpers.append(TopKLogitsWarper(parameters.top_k))
    if parameters.top_p < 1:
        warpers.append(TopPLogitsWarper(parameters.top_p))
    if parameters.min_p:
        warpers.append(MinPLogitsWarper(parameters.min_p))
    return warpers

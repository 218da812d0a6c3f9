"""Choosing the next token of every sequence that has come so far, all of them together."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence

import torch

from headwise.errors import HeadwiseError, InternalError
from headwise.results import TokenLogprobs
from services.decode.engine.penalties import Occurrences, Penalties, penalize
from services.decode.engine.token_draws import Draw, draw

# float32 logits divided by less overflow, and there all probability lies with the likeliest anyway
_GREEDY_BELOW = 1e-6
# as many as a request may name
_SEEDS = 1 << 64


@dataclasses.dataclass(frozen=True, slots=True)
class SamplingParameters:
    """Checked values; each default leaves the logits alone, and `temperature` 0 is greedy.

    `repetition_penalty` counts the prompt's tokens too, presence and frequency only generated ones.
    `logprobs`: how many of the likeliest tokens are reported; 0 reports no log-probabilities.
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
        """Return the parameters of one of several answers to a prompt."""
        seed = None if self.seed is None else (self.seed + index) % _SEEDS
        return dataclasses.replace(self, seed=seed)


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """A token, and how likely it was, if that was asked for."""

    token_id: int
    logprobs: tuple[TokenLogprobs, ...] = ()


class Sampler:
    """State of one sequence's sampling: parameters, random numbers and tokens.

    `token_ids` are all tokens so far, the prompt's first. Equal seeds and logits give equal tokens,
    whatever the batch and the device.
    """

    def __init__(self, parameters: SamplingParameters, prompt: Sequence[int]) -> None:
        self.token_ids = list(prompt)
        self.logprobs = parameters.logprobs
        self.greedy = parameters.temperature < _GREEDY_BELOW
        self.penalties = Penalties(
            repetition=parameters.repetition_penalty,
            presence=parameters.presence_penalty,
            frequency=parameters.frequency_penalty,
        )
        # whether the likeliest token is the choice, and nothing else is asked
        self.takes_likeliest = self.greedy and not self.penalties.any and not self.logprobs
        self._parameters = parameters
        self._prompt_tokens = len(prompt)
        # without a seed from the system's randomness
        self._random = random.Random(parameters.seed)
        self._occurrences: Occurrences | None = None

    def next_draw(self) -> Draw:
        """Return the parameters of the next draw, with a new random number."""
        given = self._parameters
        return Draw(given.temperature, given.top_k, given.top_p, given.min_p, self._random.random())

    def occurrences(self, logits: torch.Tensor) -> Occurrences:
        """Return the occurrences of the tokens so far, on the device of `logits` `[V]`."""
        if self._occurrences is None:
            self._occurrences = Occurrences(logits.shape[-1], logits.device)
        self._occurrences.catch_up(self.token_ids, self._prompt_tokens)
        return self._occurrences


def choose(samplers: Sequence[Sampler], logits: torch.Tensor) -> list[Choice | HeadwiseError]:
    """The next token of each, from its row of `logits` `[B, V]`; it counts as generated from here.

    Some operations and waits for the device, whatever B is. Where logits are not finite there is no
    choice but an error; that sequence should end.
    """
    scores = _penalized(samplers, logits)
    # the first of equals, as `generate`
    tokens = scores.argmax(-1)
    finite = scores.gather(-1, tokens[:, None])[:, 0].isfinite()
    sampled = [n for n, sampler in enumerate(samplers) if not sampler.greedy]
    if sampled:
        draws = [samplers[n].next_draw() for n in sampled]
        tokens[sampled] = draw(scores[sampled].float(), draws)
    logprobs_of_tokens = _logprobs(samplers, logits, tokens)
    chosen: list[Choice | HeadwiseError] = []
    # together: the host waits for a device once
    both = torch.stack((tokens, finite.to(tokens.dtype))).tolist()
    for sampler, token, sound in zip(samplers, *both, strict=True):
        logprobs = (next(logprobs_of_tokens),) if sampler.logprobs else ()
        chosen.append(chosen_token(sampler, token, logprobs, is_finite=bool(sound)))
    return chosen


def chosen_token(
    sampler: Sampler, token: int, logprobs: tuple[TokenLogprobs, ...] = (), *, is_finite: bool
) -> Choice | HeadwiseError:
    """Return the choice, which counts as generated from here; or an error."""
    if not is_finite:
        return InternalError("the model's logits are not finite", "NOT_FINITE")
    sampler.token_ids.append(token)
    return Choice(token, logprobs)


def _penalized(samplers: Sequence[Sampler], logits: torch.Tensor) -> torch.Tensor:
    at = [n for n, sampler in enumerate(samplers) if sampler.penalties.any]
    if not at:
        return logits
    occurrences = [samplers[n].occurrences(logits[n]) for n in at]
    # the logits stay the model's
    scores = logits.to(torch.float32, copy=True)
    scores[at] = penalize(scores[at], occurrences, [samplers[n].penalties for n in at])
    return scores


def _logprobs(
    samplers: Sequence[Sampler], logits: torch.Tensor, tokens: torch.Tensor
) -> Iterator[TokenLogprobs]:
    """Yield the requested log-probabilities: the model's own, before temperature and penalties."""
    asking = [n for n, sampler in enumerate(samplers) if sampler.logprobs]
    if not asking:
        return
    logprobs = logits[asking].float().log_softmax(-1)
    chosen = logprobs.gather(-1, tokens[asking, None])[:, 0].tolist()
    top_count = min(max(samplers[n].logprobs for n in asking), logits.shape[-1])
    values, indices = (part.tolist() for part in logprobs.topk(top_count))
    for place, own, likely, likeliest in zip(asking, chosen, values, indices, strict=True):
        count = samplers[place].logprobs
        yield TokenLogprobs(own, tuple(zip(likeliest[:count], likely[:count], strict=True)))

"""Choosing the next token."""

from __future__ import annotations

import dataclasses
import secrets

import torch
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

# float32 logits divided by less overflow, and there all probability lies with the likeliest anyway
_GREEDY_BELOW = 1e-6


@dataclasses.dataclass(frozen=True, slots=True)
class SamplingParameters:
    """Checked values; `temperature` 0 is greedy, `top_k` 0 and `top_p` 1 mean all tokens."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None


class Sampler:
    """One sequence's choice of tokens; equal seeds and logits give equal tokens."""

    def __init__(self, parameters: SamplingParameters, device: torch.device) -> None:
        self._greedy = parameters.temperature < _GREEDY_BELOW
        if self._greedy:
            return
        seed = secrets.randbits(63) if parameters.seed is None else parameters.seed
        self._generator = torch.Generator(device).manual_seed(seed)
        self._warpers = LogitsProcessorList([TemperatureLogitsWarper(parameters.temperature)])
        if parameters.top_k:
            self._warpers.append(TopKLogitsWarper(parameters.top_k))
        if parameters.top_p < 1:
            self._warpers.append(TopPLogitsWarper(parameters.top_p))

    def choose(self, logits: torch.Tensor) -> int:
        """The next token from `[V]` logits."""
        if self._greedy:
            return int(logits.argmax())
        # these warpers look at the scores alone
        no_ids = torch.empty(1, 0, dtype=torch.long, device=logits.device)
        probabilities = self._warpers(no_ids, logits[None].float()).softmax(-1)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))

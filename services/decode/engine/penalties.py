"""Penalties on tokens that a sequence has already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Penalties(NamedTuple):
    """`repetition` divides (negative: multiplies) the logit of every token that is there already.

    `presence` is taken off the logits of generated tokens, and `frequency` for each occurrence.
    """

    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0

    @property
    def any(self) -> bool:
        """Whether logits change at all."""
        return self != Penalties()


class Occurrences:
    """Occurrences of tokens: `seen` bool `[V]`, and counts `generated` float32 `[V]`."""

    def __init__(self, vocabulary_size: int, device: torch.device) -> None:
        self.seen = torch.zeros(vocabulary_size, dtype=torch.bool, device=device)
        self.generated = torch.zeros(vocabulary_size, device=device)
        self._counted = 0

    def catch_up(self, token_ids: Sequence[int], prompt_tokens: int) -> None:
        """Count what has been appended to a sequence's tokens since the last call."""
        new = torch.tensor(token_ids[self._counted :], dtype=torch.int64, device=self.seen.device)
        self.seen[new] = True
        made = new[max(0, prompt_tokens - self._counted) :]
        self.generated.index_add_(0, made, self.generated.new_ones(len(made)))
        self._counted = len(token_ids)


def penalize(
    scores: torch.Tensor, occurrences: Sequence[Occurrences], penalties: Sequence[Penalties]
) -> torch.Tensor:
    """Float32 `scores` `[B, V]` less what each sequence's penalties take off.

    Repetition is CTRL's (Keskar et al., 2019), the others are the OpenAI API's.
    """
    repetition, presence, frequency = torch.tensor(penalties).to(scores)[:, :, None].unbind(1)
    if any(each.repetition != 1 for each in penalties):
        seen = torch.stack([counts.seen for counts in occurrences])
        repeated = torch.where(scores > 0, scores / repetition, scores * repetition)
        scores = repeated.where(seen, scores)
    if any(each.presence or each.frequency for each in penalties):
        generated = torch.stack([counts.generated for counts in occurrences])
        scores = scores - frequency * generated - presence * (generated > 0)
    return scores

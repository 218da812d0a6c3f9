"""Drawing tokens by their probabilities, for many sequences at once and mostly without a sort.

What may be drawn is what transformers' logits warpers leave, in the order of its `generate`:
temperature, top-k, top-p, min-p. Each of these leaves the tokens that are at least so likely, so
all that is to be found is how likely. For top-p the warpers sort the whole vocabulary of each
sequence; here its likeliest few hundred tokens are looked at, and more only where these do not hold
the probability in question.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

# among so many lies what top-p keeps, unless the model has little idea
_CANDIDATES = 256
_TIMES_MORE = 16


class Draw(NamedTuple):
    """A token to be drawn: `number`, in [0, 1), says which among those that the rest leaves.

    `top_k` 0, `top_p` 1 and `min_p` 0 leave all.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    number: float

    @property
    def ranks(self) -> bool:
        """Whether it matters how many tokens are likelier."""
        return self.top_k > 0 or self.top_p < 1


def draw(
    scores: torch.Tensor, draws: Sequence[Draw], candidates: int = _CANDIDATES
) -> torch.Tensor:
    """Token ids int64 `[B]` from float32 `scores` `[B, V]`; where these are not finite, any.

    `candidates` are looked at first where ranks matter, and have no influence on what is drawn.
    """
    size = scores.shape[-1]
    fields = torch.tensor(draws, dtype=torch.float64).view(-1, 5, 1).to(scores.device)
    temperature, top_k, top_p, min_p, number = fields.unbind(1)
    probabilities = (scores / temperature.float()).softmax(-1)
    least = min_p.float() * probabilities.amax(-1, keepdim=True)
    ranking = [n for n, drawn in enumerate(draws) if drawn.ranks]
    if ranking:
        count = max([candidates, *(drawn.top_k for drawn in draws if drawn.top_k < size)])
        ranked = _least(probabilities[ranking], top_k[ranking], top_p[ranking], count)
        least[ranking] = least[ranking].maximum(ranked)
    ends = probabilities.where(probabilities >= least, 0).cumsum(-1, dtype=torch.float64)
    place = torch.searchsorted(ends, number * ends[:, -1:], right=True)[:, 0]
    # for sums that are none
    return place.clamp(max=size - 1)


def _least(
    probabilities: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, count: int
) -> torch.Tensor:
    """Return the probability of the least likely token within top-k and top-p: float32 `[B, 1]`.

    `top_k` and `top_p` are float64 `[B, 1]`. The `count` likeliest tokens of `[B, V]` are read
    first, at least as many as any top-k that excludes tokens, and more if these do not suffice.
    """
    size = probabilities.shape[-1]
    likeliest = probabilities.topk(min(count, size)).values
    limited = (top_k > 0) & (top_k < size)
    ranks = torch.arange(likeliest.shape[-1], device=likeliest.device)
    left = likeliest.where((ranks < top_k) | ~limited, 0)
    held = left.cumsum(-1, dtype=torch.float64)
    # top-p is a share of what top-k leaves
    wanted = top_p * torch.where(limited, held[:, -1:], 1)
    kept = ((held - left < wanted) & (left > 0)).sum(-1, keepdim=True)
    least = likeliest.gather(1, kept.clamp(min=1) - 1)
    if count < size:
        flat = (held[:, -1:] < wanted).nonzero()[:, 0].tolist()
        if flat:
            more = count * _TIMES_MORE
            least[flat] = _least(probabilities[flat], top_k[flat], top_p[flat], more)
    return least

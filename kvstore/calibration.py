"""Properties of a model's heads, measured once by probes of the model."""

from __future__ import annotations

import dataclasses
import math

import torch

from kvstore.rules import RATIO_ROUNDING

# RazorAttention keeps the top 14 % of the heads by induction and the top 1 % by echo
ECHO_PART = 1 / 15


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class RetrievalScores:
    """Retrieval scores of KV heads, f32 `[H]` a layer: the maximum over the group's query heads.

    `induction`: attention to the token after an earlier copy of the current one. `echo`: to the
    earlier copies themselves. Source: RazorAttention (arXiv 2407.15891).
    """

    induction: tuple[torch.Tensor, ...]
    echo: tuple[torch.Tensor, ...]

    def heads(self, ratio: float) -> frozenset[tuple[int, int]]:
        """The (layer, head) that retrieve best, `ratio` of all heads rounded down.

        Most are taken by induction, then the best by echo of those that are left. (The paper takes
        the union of both; where they overlap it is smaller than asked for.)
        """
        places = [(layer, head) for layer, of in enumerate(self.echo) for head in range(len(of))]
        count = math.floor(ratio * len(places) + RATIO_ROUNDING)
        by_echo = math.ceil(count * ECHO_PART - RATIO_ROUNDING)
        taken = _best(places, self.induction, count - by_echo)
        rest = [place for place in places if place not in taken]
        return frozenset(taken | _best(rest, self.echo, by_echo))


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """The artefacts that a policy may ask for.

    `filters` f32 `[H, D]` a layer: unit vectors along which each KV head's queries lie. Source:
    Q-Filters (arXiv 2503.02812). `sensitivity` f32 `[HQ]` a layer: root of the Fisher information
    of an element of a query head's output, so that half its square times an error's square is what
    the error costs in nats.
    """

    retrieval: RetrievalScores | None = None
    filters: tuple[torch.Tensor, ...] | None = None
    sensitivity: tuple[torch.Tensor, ...] | None = None

    def retrieval_heads(self, ratio: float) -> frozenset[tuple[int, int]]:
        """The (layer, head) that keep everything."""
        if ratio == 0:
            return frozenset()
        assert self.retrieval is not None, "a policy with retrieval heads comes with their scores"
        return self.retrieval.heads(ratio)


def _best(
    places: list[tuple[int, int]], scores: tuple[torch.Tensor, ...], count: int
) -> set[tuple[int, int]]:
    ranked = sorted(places, key=lambda place: (-float(scores[place[0]][place[1]]), place))
    return set(ranked[:count])

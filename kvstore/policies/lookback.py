"""Lookback: SnapKV-style scoring by a prompt's late queries, one budget over all layers and heads.

An own method, based on SnapKV's observation (Li et al., arXiv 2404.14469) that the end of a prompt
shows which rows later queries read. A row's score is the root mean square, over the late queries
far enough from it, of its contribution to their output: its share of the attention times the
distance between its value and the mean output from far rows. With `sensitivity` the score is
multiplied by the head's sensitivity: early layers' heads have small outputs, and predictions depend
on them more. All queries read near rows, which says nothing about later queries, so the latest rows
are kept and not scored. The scores of all layers and heads compete for one budget, as AdaKV's do
within a layer. Measured on real text: squares are better than sums and peaks, values help, and the
last third of the queries is better than all of them or the last few.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import ClassVar

import torch

from kvstore.cache import LayerShape
from kvstore.kernels.device_copies import to_device
from kvstore.plans import (
    AttentionProfile,
    CacheFacts,
    LayerFacts,
    LayerPlan,
    ProfileRequest,
    PromptFacts,
    ReferenceAttention,
)
from kvstore.policies.budgeted import with_first_and_last
from kvstore.policies.competing import Competing
from kvstore.policies.parameters import flag, ratio, tokens
from kvstore.policies.reference_shares import head_shares, visible_columns
from kvstore.policies.selection import full_plan
from kvstore.rules import RetentionRule

# of a head's share of the budget, at most, is left to the latest rows
_MOST_RECENT = 5 / 8


@dataclasses.dataclass(frozen=True, slots=True)
class Lookback(Competing):
    """`queries` of the last `late_share` of the prompt look back at least `distance` tokens.

    The `recent` latest rows of every head are kept, fewer where the budget is small. Of what is
    generated heads that are not whole keep the latest `generated_window` rows, 0 for all. With
    `sensitivity` what a row adds to a head's output counts by what it does to the predictions.
    """

    name: ClassVar[str] = "lookback"

    distance: int = tokens(128, least=1)
    recent: int = tokens(192)
    late_share: float = ratio(0.3)
    queries: int = tokens(256, least=1)
    generated_window: int = tokens(0)
    sensitivity: bool = flag(False)

    @property
    def uses_sensitivity(self) -> bool:
        return self.sensitivity

    def profile_request(self, tokens: int, shape: LayerShape) -> ProfileRequest | None:
        if self.keeps_everything():
            return None
        return ProfileRequest(edges=(), late_queries=self.queries, late_share=self.late_share)

    def plan_cache(
        self,
        profiles: Sequence[AttentionProfile | None],
        prompt: PromptFacts,
        cache: CacheFacts,
    ) -> Sequence[LayerPlan]:
        layers = [LayerFacts(index, cache) for index in range(len(cache.shapes))]
        references = [profile.reference for profile in profiles if profile and profile.reference]
        if len(references) < len(layers):
            return [full_plan(prompt, layer.shape) for layer in layers]
        readings = [
            [
                _read(reference, head, layer.shape, self.distance, self._weights(layer, head))
                for head in range(layer.shape.kv_heads)
            ]
            for reference, layer in zip(references, layers, strict=True)
        ]
        scores = [
            self._scores(heads, prompt, layer)
            for heads, layer in zip(readings, layers, strict=True)
        ]
        plans = self.plan_winners(scores, prompt, layers)
        return [self._ruled(plan, prompt) for plan in _covering(plans, readings)]

    def _weights(self, layer: LayerFacts, head: int) -> torch.Tensor | None:
        """Return the weights of errors of a KV head's query heads, f32 `[G]`; None if equal."""
        if not self.sensitivity:
            return None
        known = layer.cache.sensitivity
        assert known is not None, "a policy that asks for sensitivity comes with its calibration"
        return known[layer.index].view(-1, layer.shape.group)[head]

    def _ruled(self, plan: LayerPlan, prompt: PromptFacts) -> LayerPlan:
        """Add the rule: chosen prompt rows stay; generated rows stay as the parameters say."""
        if not self.generated_window:
            return plan
        rule = RetentionRule(
            horizon=plan.shape.sliding_window or 0,
            sinks=prompt.tokens,
            generated_from=prompt.tokens,
            generated_window=self.generated_window,
        )
        heads = (dataclasses.replace(head, rule=rule) for head in plan.heads)
        return dataclasses.replace(plan, heads=tuple(heads))

    def _scores(
        self, heads: Sequence[_Reading], prompt: PromptFacts, layer: LayerFacts
    ) -> torch.Tensor:
        """Return the scores of all heads, f32 `[H, T]`; sinks and latest rows are highest."""
        recent = min(self.recent, int(_MOST_RECENT * self.rows(prompt, layer)))
        recent = max(recent, self.floor_rows - self.sinks)
        afar = torch.stack([head.afar for head in heads])
        return with_first_and_last(afar, self.sinks, recent, prompt, layer)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Reading:
    """Attention of the late queries to one KV head's rows, f32 `[T]` each.

    `afar`: the scores, 0 for rows that are near every query. `shares`: shares of all attention,
    near and far.
    """

    afar: torch.Tensor
    shares: torch.Tensor


def _covering(
    plans: Sequence[LayerPlan], readings: Sequence[Sequence[_Reading]]
) -> list[LayerPlan]:
    """Return the plans with the share of the late queries' attention that their rows cover."""
    pairs = [
        (kept, head)
        for plan, heads in zip(plans, readings, strict=True)
        for kept, head in zip(plan.heads, heads, strict=True)
    ]
    # all together: each number is waited for on a device
    covered = torch.stack([head.shares[kept.rows].sum() for kept, head in pairs]).tolist()
    heads = iter(
        [
            dataclasses.replace(kept, attention_coverage=min(1.0, share))
            for (kept, _), share in zip(pairs, covered, strict=True)
        ]
    )
    return [
        dataclasses.replace(plan, heads=tuple(itertools.islice(heads, len(plan.heads))))
        for plan in plans
    ]


def _read(
    reference: ReferenceAttention,
    head: int,
    shape: LayerShape,
    distance: int,
    weights: torch.Tensor | None,
) -> _Reading:
    """`weights` f32 `[G]` of the query heads' errors, 1 each if there are none."""
    v = reference.v[head].float()
    seen = visible_columns(reference, shape)
    shares = head_shares(reference, head, shape, seen)
    every = shares.mean((0, 1))
    away = to_device(reference.positions, v.device)[:, None] - torch.arange(len(v), device=v.device)
    far = seen & (away >= distance)
    shares = shares.masked_fill_(~far, 0.0)
    mass = shares.sum(-1, keepdim=True)
    given = shares @ v / mass.clamp_min(torch.finfo(mass.dtype).tiny)
    squares = shares.square_()
    if weights is not None:
        squares *= to_device(weights, squares.device).square()[:, None, None]
    squares = squares.view(-1, len(v))
    given = given.view(len(squares), -1)
    # Σ s² · |v − o|², without the T × m distances
    scores = squares.sum(0) * v.square().sum(-1)
    scores -= 2 * (v * (squares.mT @ given)).sum(-1)
    scores += squares.mT @ given.square().sum(-1)
    return _Reading((scores.clamp_min(0) / (shape.group * far.sum(0)).clamp_min(1)).sqrt(), every)

"""ZeroMerge: the latest rows, the heaviest, and a few rows into which all others are merged.

Source: Liu et al., ZeroMerge, also ZSMerge (arXiv 2503.10714), and its code. A row scores the
attention that it has received, each query's a `decay` below the next one's. What is neither recent
nor heavy is cut, in order, into as many groups as there are residual rows; each becomes the mean
of its keys and values, and N tokens weigh N^alpha in the softmax. Sums over a group of query heads
are means here, which rank alike.

While decoding the paper merges the token that has the lowest score into the nearest residual row;
rules cannot merge, so here it is dropped, and the residual rows stay as they are. They take the
positions of the first tokens that were dropped; what lies before the last of these stays as sinks
do. A layer with a sliding window of its own, which forgets by position, has no residual rows. The
paper has no sinks: set `sinks` to 0 for that.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch

from kvstore.cache import LOG_WEIGHT_BYTES, SCORE_BYTES, LayerShape
from kvstore.plans import (
    AttentionProfile,
    HeadPlan,
    LayerFacts,
    LayerPlan,
    ProfileRequest,
    PromptFacts,
    ReferenceAttention,
)
from kvstore.policies.budget import visible_rows
from kvstore.policies.budgeted import Budgeted, with_first_and_last
from kvstore.policies.parameters import ratio, share, tokens
from kvstore.policies.reference_shares import head_shares, visible_columns
from kvstore.policies.row_merging import merge_rows
from kvstore.policies.selection import full_plan, highest_visible
from kvstore.rules import RetentionRule, ScoreUpdate, share_of

# queries that count less are not looked at
_LEAST_WEIGHT = 1e-4


@dataclasses.dataclass(frozen=True, slots=True)
class ZeroMerge(Budgeted):
    """`recent_ratio` of the budget is the window of latest rows, `residual_rows` of it are merged.

    `alpha`: what a merged row weighs, from 0, as much as any, to 1, as much as all its tokens.
    """

    name: ClassVar[str] = "zeromerge"
    mark_bytes: ClassVar[int] = SCORE_BYTES + LOG_WEIGHT_BYTES
    weighs_rows: ClassVar[bool] = True

    recent_ratio: float = ratio(0.4)
    residual_rows: int = tokens(1)
    alpha: float = share(0.6)
    decay: float = ratio(0.98)

    def profile_request(self, tokens: int, shape: LayerShape) -> ProfileRequest | None:
        if self.keeps_everything():
            return None
        last = tokens
        if self.decay < 1:
            last = min(tokens, math.ceil(math.log(_LEAST_WEIGHT) / math.log(self.decay)))
        return ProfileRequest(edges=(), late_queries=last, late_share=last / tokens)

    def plan(
        self, profile: AttentionProfile | None, prompt: PromptFacts, layer: LayerFacts
    ) -> LayerPlan:
        rows = self.rows(prompt, layer)
        visible = visible_rows(prompt, layer.shape)
        if profile is None or profile.reference is None or rows >= visible:
            return full_plan(prompt, layer.shape)
        parts, heads = self._parts(rows, layer.shape), range(layer.shape.kv_heads)
        scores = torch.stack(
            [decayed_mass(profile.reference, head, layer.shape, self.decay) for head in heads]
        )
        ranked = with_first_and_last(scores, self.sinks, parts.recent, prompt, layer)
        counts = [rows - parts.residual] * layer.shape.kv_heads
        kept = highest_visible(ranked, counts, prompt, layer.shape)
        plans = (
            self._head(profile.reference, head, kept[head], scores[head], parts, layer.shape)
            for head in heads
        )
        return LayerPlan(layer.shape, tuple(plans))

    def _parts(self, rows: int, shape: LayerShape) -> _Parts:
        recent = max(share_of(self.recent_ratio, rows), self.floor_rows - self.sinks, 1)
        if shape.sliding_window is not None:
            return _Parts(recent, 0)
        # never so many that the latest rows would have to make room for them
        return _Parts(recent, min(self.residual_rows, max(0, rows - self.sinks - recent)))

    def _head(
        self,
        reference: ReferenceAttention,
        head: int,
        kept: torch.Tensor,
        scores: torch.Tensor,
        parts: _Parts,
        shape: LayerShape,
    ) -> HeadPlan:
        """Return a head's plan: the `kept` rows, bool `[T]`, and residual rows of the others."""
        attention_coverage = min(1.0, float(scores[kept].sum() / scores.sum()))
        held, sinks, merged = kept, self.sinks, None
        if parts.residual:
            dropped = (~kept).nonzero().squeeze(1)
            slots = dropped[: parts.residual]
            held, sinks = kept.index_fill(0, slots, True), int(slots[-1]) + 1
            owners = _owners(held, dropped, slots)
            k, v = reference.k[head], reference.v[head]
            merged = merge_rows(k, v, owners, int(held.sum()), exponent=self.alpha)
        rule = self._rule(held, sinks, parts.recent, shape)
        rows = held.nonzero().squeeze(1)
        return HeadPlan(
            rule, rows, scores if rule.needs_scores else None, attention_coverage, merged
        )

    def _rule(
        self, held: torch.Tensor, sinks: int, recent: int, shape: LayerShape
    ) -> RetentionRule:
        """The rule under which `held` stay, bool `[T]`, those before `sinks` for ever."""
        between = held.clone()
        # past a sliding window the first positions are no rows that a rule could keep
        between[:sinks] = False
        between[-recent:] = False
        return RetentionRule(
            horizon=shape.sliding_window or 0,
            sinks=sinks,
            window=recent,
            floor_rows=self.floor_rows,
            budget_rows=int(between.sum()),
            budget_beyond=True,
            score_update=ScoreUpdate.DECAYED,
            score_decay=self.decay,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Parts:
    """Numbers of a head's rows: the latest ones, and those that stand for dropped rows."""

    recent: int
    residual: int


def _owners(held: torch.Tensor, dropped: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """The row among `held`, bool `[T]`, that each token goes into, int64 `[T]`.

    The `dropped` positions, in order, go in groups of like size into the rows at `slots`.
    """
    rows = held.cumsum(0) - 1
    count = len(dropped)
    groups = torch.arange(count, device=dropped.device) * len(slots) // count
    return rows.index_copy(0, dropped, rows[slots][groups])


def decayed_mass(
    reference: ReferenceAttention, head: int, shape: LayerShape, decay: float
) -> torch.Tensor:
    """The attention each row received, f32 `[T]`, mean over the query heads of KV head `head`.

    A query counts `decay` to the power of its distance from the prompt's end.
    """
    shares = head_shares(reference, head, shape, visible_columns(reference, shape))
    age = reference.k.shape[1] - 1 - reference.positions.to(shares.device)
    weights = torch.full_like(age, decay, dtype=torch.float32) ** age
    return weights @ shares.mean(0)

"""H2O: half of the budget for the latest rows, half for those of most accumulated attention.

Source: Zhang et al., H2O: Heavy-Hitter Oracle (arXiv 2306.14048). Scores are sums of attention
probabilities over all queries so far and go on growing while decoding; the budget stays the same
number of rows. The paper has a head of queries to each head of keys; here the mean over the G
query heads of a KV head scores its rows. The paper has no sinks: set `sinks` to 0 for that.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from kvstore.cache import SCORE_BYTES, LayerShape
from kvstore.plans import AttentionProfile, LayerFacts, LayerPlan, ProfileRequest, PromptFacts
from kvstore.policies.budget import visible_rows
from kvstore.policies.budgeted import Budgeted
from kvstore.policies.parameters import ratio
from kvstore.policies.selection import coverage_of_rows, full_plan, head_plan, kept_columns
from kvstore.rules import RetentionRule, ScoreUpdate, share_of


@dataclasses.dataclass(frozen=True, slots=True)
class H2O(Budgeted):
    """`recent_ratio` of the budget is the window of latest rows."""

    name: ClassVar[str] = "h2o"
    mark_bytes: ClassVar[int] = SCORE_BYTES

    recent_ratio: float = ratio(0.5)

    def profile_request(self, tokens: int, shape: LayerShape) -> ProfileRequest | None:
        return None if self.keeps_everything() else ProfileRequest()

    def plan(
        self, profile: AttentionProfile | None, prompt: PromptFacts, layer: LayerFacts
    ) -> LayerPlan:
        rows = self.rows(prompt, layer)
        if profile is None or rows >= visible_rows(prompt, layer.shape):
            return full_plan(prompt, layer.shape)
        rule = self._rule(rows, layer.shape)
        scores = profile.accumulated().mean(1)
        # what a sliding layer sees no more may not take a part of the budget
        scores[:, : prompt.tokens - visible_rows(prompt, layer.shape)] = 0.0
        masks = torch.stack([kept_columns(rule, head, prompt) for head in scores])
        parts = zip(scores, coverage_of_rows(profile, masks), strict=True)
        heads = (
            head_plan(rule, head, prompt, attention_coverage) for head, attention_coverage in parts
        )
        return LayerPlan(layer.shape, tuple(heads))

    def _rule(self, rows: int, shape: LayerShape) -> RetentionRule:
        recent = share_of(self.recent_ratio, max(0, rows - self.sinks))
        # the floor may widen the window: what it takes is no longer there for the heavy
        recent = max(recent, self.floor_rows - self.sinks)
        return RetentionRule(
            horizon=shape.sliding_window or 0,
            sinks=self.sinks,
            window=recent,
            floor_rows=self.floor_rows,
            budget_rows=max(0, rows - self.sinks - recent),
            budget_beyond=True,
            score_update=ScoreUpdate.SUM,
        )

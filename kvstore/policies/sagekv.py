"""SAGE-KV: what the prompt's last token attends to, beside sinks and a sliding window.

Source: Wang et al., LLMs Know What to Drop: Self-Attention Guided KV Cache Eviction
(arXiv 2503.08879). The last token's attention scores the rows between sinks and window, the best
of them stay for good, and while decoding the window slides, so a head's size never changes. The
paper leaves the split of the budget open: here the window takes half. The query heads of a group
vote by the mean of their probabilities.
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
from kvstore.policies.selection import coverage_of_rows, full_plan, head_plan, highest_visible
from kvstore.rules import RetentionRule, share_of


@dataclasses.dataclass(frozen=True, slots=True)
class SageKV(Budgeted):
    """`recent_ratio` of the budget is the window that slides."""

    name: ClassVar[str] = "sagekv"
    mark_bytes: ClassVar[int] = SCORE_BYTES

    recent_ratio: float = ratio(0.5)

    def profile_request(self, tokens: int, shape: LayerShape) -> ProfileRequest | None:
        return None if self.keeps_everything() else ProfileRequest(recent_rows=1)

    def plan(
        self, profile: AttentionProfile | None, prompt: PromptFacts, layer: LayerFacts
    ) -> LayerPlan:
        rows = self.rows(prompt, layer)
        if profile is None or rows >= visible_rows(prompt, layer.shape):
            return full_plan(prompt, layer.shape)
        recent = max(share_of(self.recent_ratio, rows), self.floor_rows) - self.sinks
        rule = self._rule(max(0, recent), rows, layer.shape)
        scores = self._between(profile.accumulated().mean(1), rule)
        chosen = highest_visible(
            scores, [rule.budget_rows] * layer.shape.kv_heads, prompt, layer.shape
        )
        # a score that never changes: those that were chosen, before all that come
        plans = [head_plan(rule, head.float(), prompt, 0.0) for head in chosen]
        kept = torch.zeros_like(chosen)
        for head, plan in enumerate(plans):
            kept[head, plan.rows] = True
        shares = coverage_of_rows(profile, kept)
        heads = (
            dataclasses.replace(p, attention_coverage=share)
            for p, share in zip(plans, shares, strict=True)
        )
        return LayerPlan(layer.shape, tuple(heads))

    def _rule(self, recent: int, rows: int, shape: LayerShape) -> RetentionRule:
        return RetentionRule(
            horizon=shape.sliding_window or 0,
            sinks=self.sinks,
            window=recent,
            floor_rows=self.floor_rows,
            budget_rows=max(0, rows - self.sinks - recent),
            budget_beyond=True,
        )

    def _between(self, scores: torch.Tensor, rule: RetentionRule) -> torch.Tensor:
        """`scores` `[H, T]` with sinks and window out of the running."""
        running = scores.clone()
        running[:, : rule.sinks] = -1.0
        running[:, max(0, scores.shape[1] - rule.recent_rows) :] = -1.0
        return running

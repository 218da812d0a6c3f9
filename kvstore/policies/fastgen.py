"""FastGen: each head gets the cheapest of five rules that recovers its attention.

Source: Ge et al., Model Tells You What to Discard (arXiv 2310.01801). What the paper leaves open
is decided so: one rule per KV head, on the mean over its G query heads. Sinks belong to every set
and count in what it recovers. The floor of recent rows is kept as well but makes no set pass:
recent rows hold so much of the mass that with them S alone passes in many heads, which then lose
the rest of the prompt (docs/results/fidelity.md).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from kvstore.cache import LayerShape
from kvstore.plans import (
    AttentionProfile,
    HeadPlan,
    LayerFacts,
    LayerPlan,
    ProfileRequest,
    PromptFacts,
)
from kvstore.policies.base import Scope
from kvstore.policies.parameters import flag, ratio, share, to_parameters, tokens
from kvstore.policies.selection import covered_columns, full_plan, full_rule, head_plan
from kvstore.rules import RetentionRule, ScoreUpdate, TokenClass, share_of


@dataclasses.dataclass(frozen=True, slots=True)
class FastGen:
    """Tries S, S+P, S+P+F, S+P+F+L (or, without `frequent`, S, S+P, S+P+L), then full.

    `recovery` is the share of attention mass to recover; 1 means full without profiling.
    `local_ratio` of the prompt is the window of L, `frequent_ratio` of the current length the
    budget of F. `strict`: every query head of the group must pass, not just their mean.
    `keep_generated`: fed tokens stay until a local window has passed; without it, as published,
    heads of S+P+F hardly admit any. `profile_rows`: query rows to sample, 0 for all.
    `retrieval_ratio`: the share of KV heads, best at retrieving, that keep everything.
    """

    name: ClassVar[str] = "fastgen"
    scope: ClassVar[Scope] = Scope.LAYER
    uses_filters: ClassVar[bool] = False
    uses_sensitivity: ClassVar[bool] = False
    weighs_rows: ClassVar[bool] = False

    recovery: float = ratio(0.95)
    local_ratio: float = ratio(0.3)
    frequent_ratio: float = ratio(0.3)
    strict: bool = flag(False)
    keep_generated: bool = flag(True)
    sinks: int = tokens(4)
    floor_rows: int = tokens(32)
    frequent: bool = flag(True)
    profile_rows: int = tokens(0)
    retrieval_ratio: float = share(0.0)

    def parameters(self) -> dict[str, object]:
        return to_parameters(self)

    def profile_request(self, tokens: int, shape: LayerShape) -> ProfileRequest | None:
        if self.recovery == 1 or tokens == 0:
            return None
        rules = self._candidates(tokens, shape)
        edges = {0, *(rule.window for rule in rules), *(rule.recent_rows for rule in rules)}
        return ProfileRequest(tuple(sorted(edges)), self.profile_rows)

    def plan(
        self, profile: AttentionProfile | None, prompt: PromptFacts, layer: LayerFacts
    ) -> LayerPlan:
        shape = layer.shape
        if profile is None:
            return full_plan(prompt, shape)
        candidates = self._candidates(prompt.tokens, shape)
        heads = range(shape.kv_heads)
        return LayerPlan(
            shape, tuple(self._plan_head(profile, h, candidates, prompt, shape) for h in heads)
        )

    def _candidates(self, prompt_tokens: int, shape: LayerShape) -> tuple[RetentionRule, ...]:
        """The compressing rules, cheapest first; each keeps whatever the one before it keeps."""
        local = share_of(self.local_ratio, prompt_tokens)
        special = RetentionRule(
            horizon=shape.sliding_window or 0,
            protected=TokenClass.SPECIAL,
            sinks=self.sinks,
            floor_rows=self.floor_rows,
            generated_from=prompt_tokens if self.keep_generated else 0,
            generated_window=local if self.keep_generated else 0,
        )
        punctuation = dataclasses.replace(
            special, protected=TokenClass.SPECIAL | TokenClass.PUNCTUATION
        )
        if not self.frequent:
            return special, punctuation, dataclasses.replace(punctuation, window=local)
        frequent = dataclasses.replace(
            punctuation, budget_ratio=self.frequent_ratio, score_update=ScoreUpdate.SUM
        )
        return special, punctuation, frequent, dataclasses.replace(frequent, window=local)

    def _plan_head(
        self,
        profile: AttentionProfile,
        head: int,
        candidates: tuple[RetentionRule, ...],
        prompt: PromptFacts,
        shape: LayerShape,
    ) -> HeadPlan:
        scores = profile.accumulated()[head].mean(0)
        for rule in candidates:
            judged = dataclasses.replace(rule, floor_rows=0)
            if self._coverage(profile, head, judged, scores, prompt) >= self.recovery:
                attention_coverage = self._coverage(profile, head, rule, scores, prompt)
                return head_plan(rule, scores, prompt, attention_coverage)
        return head_plan(full_rule(shape), None, prompt, 1.0)

    def _coverage(
        self,
        profile: AttentionProfile,
        head: int,
        rule: RetentionRule,
        scores: torch.Tensor,
        prompt: PromptFacts,
    ) -> float:
        """The share of mass in the rule's columns or closer than its window.

        A query row's mass is 1 in all, so this is 1 less what lies in other columns and beyond.
        """
        lost = ~covered_columns(rule, scores, prompt)
        far = profile.beyond(rule.recent_rows)[head]
        shares = 1 - far[:, lost].sum(1, dtype=torch.float64) / prompt.tokens
        return float(shares.min() if self.strict else shares.mean())

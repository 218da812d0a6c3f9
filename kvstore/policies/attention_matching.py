"""Attention matching: few rows whose weights and values are fitted to stand for all of them.

Source: Zweiger et al., Fast KV Compaction via Attention Matching (arXiv 2602.16284), in its fast
form: the reference queries are those of a second pass in which the model repeats its prompt, a
row's score is the most that any of them pays to it, and log-weights and values of the kept rows
are fitted to them (see `row_fitting`). Root mean squares, the paper's other score, are
better without a fit and no better with one. The paper gives each head a share of the
budget that was found for the model beforehand; here the scores of all heads compete, as
`reconstruction`'s do, and no such table is needed. Rows that are kept anyway, the sinks and the
latest, are fitted like all others; heads that keep everything are not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch

from kvstore.cache import LOG_WEIGHT_BYTES, LayerShape
from kvstore.plans import (
    AttentionProfile,
    CacheFacts,
    HeadPlan,
    LayerFacts,
    LayerPlan,
    ProfileRequest,
    PromptFacts,
    ReferenceAttention,
)
from kvstore.policies.budgeted import with_first_and_last
from kvstore.policies.competing import Competing
from kvstore.policies.parameters import tokens
from kvstore.policies.reference_shares import head_shares, visible_columns
from kvstore.policies.row_fitting import fit_rows
from kvstore.policies.selection import full_plan


@dataclasses.dataclass(frozen=True, slots=True)
class AttentionMatching(Competing):
    """`queries`: how many positions of the second pass are looked at, in every query head."""

    name: ClassVar[str] = "attention_matching"
    mark_bytes: ClassVar[int] = LOG_WEIGHT_BYTES
    weighs_rows: ClassVar[bool] = True

    queries: int = tokens(1024, least=1)

    def profile_request(self, tokens: int, shape: LayerShape) -> ProfileRequest | None:
        if self.keeps_everything():
            return None
        return ProfileRequest(edges=(), reference_queries=self.queries)

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
        pairs = list(zip(references, layers, strict=True))
        scores = [self._scores(reference, prompt, layer) for reference, layer in pairs]
        plans = self.plan_winners(scores, prompt, layers)
        return [
            _fitted(plan, reference, layer)
            for plan, (reference, layer) in zip(plans, pairs, strict=True)
        ]

    def _scores(
        self, reference: ReferenceAttention, prompt: PromptFacts, layer: LayerFacts
    ) -> torch.Tensor:
        heads = range(layer.shape.kv_heads)
        shares = (_shares(reference, head, layer.shape) for head in heads)
        scores = torch.stack([_peaks(of_head) for of_head in shares])
        recent = max(0, self.floor_rows - self.sinks)
        return with_first_and_last(scores, self.sinks, recent, prompt, layer)


def _shares(reference: ReferenceAttention, head: int, shape: LayerShape) -> torch.Tensor:
    """Return each query's attention to the prompt's rows for KV head `head`, summing to 1.

    f32 `[m, T]`; in a layer with a sliding window, of the queries that reach the prompt.
    """
    seen = visible_columns(reference, shape)
    shares = head_shares(reference, head, shape, seen)
    if shape.sliding_window is not None:
        shares = shares[:, seen.any(1)]
    return shares.flatten(0, 1)


def _peaks(shares: torch.Tensor) -> torch.Tensor:
    """The most that any query pays to each row; nothing where no query sees any."""
    return shares.amax(0) if len(shares) else shares.new_zeros(shares.shape[1])


def _fitted(plan: LayerPlan, reference: ReferenceAttention, layer: LayerFacts) -> LayerPlan:
    heads = (
        plan_of_head
        if head in layer.uncompressed_heads
        else _fitted_head(plan_of_head, reference, head, layer.shape)
        for head, plan_of_head in enumerate(plan.heads)
    )
    return dataclasses.replace(plan, heads=tuple(heads))


def _fitted_head(
    plan: HeadPlan, reference: ReferenceAttention, head: int, shape: LayerShape
) -> HeadPlan:
    """Return a head's plan with fitted rows, unless it keeps all rows or no query reads them."""
    shares = _shares(reference, head, shape)
    rows = plan.rows.to(shares.device)
    attention_coverage = (
        float(shares[:, rows].sum(1, dtype=torch.float64).mean()) if len(shares) else 0.0
    )
    if not len(shares) or rows.numel() == shares.shape[1]:
        return dataclasses.replace(plan, attention_coverage=min(attention_coverage, 1.0))
    fitted = fit_rows(shares, reference.v[head], rows)
    return dataclasses.replace(plan, attention_coverage=min(attention_coverage, 1.0), fitted=fitted)

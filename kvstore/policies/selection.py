"""Selection of a head's rows by its rule and scores; shared by all policies."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from kvstore.cache import LayerShape
from kvstore.kernels.device_copies import to_device
from kvstore.plans import AttentionProfile, HeadPlan, LayerPlan, PromptFacts
from kvstore.policies.parameters import MAX_TOKENS
from kvstore.retention import keep_mask
from kvstore.rules import RetentionRule


def kept_columns(
    rule: RetentionRule, scores: torch.Tensor | None, prompt: PromptFacts
) -> torch.Tensor:
    """Return the rows that `rule` keeps at the end of the prompt, bool `[T]`."""
    device = prompt.classes.device if scores is None else scores.device
    positions = torch.arange(prompt.tokens, dtype=torch.int32, device=device)
    return keep_mask(rule, positions, scores, to_device(prompt.classes, device), prompt.tokens)


def covered_columns(
    rule: RetentionRule, scores: torch.Tensor | None, prompt: PromptFacts
) -> torch.Tensor:
    """The columns whose far mass `rule` covers, bool `[T]`.

    A row past the horizon is gone at the prompt's end, but covered every query that could see it.
    """
    return kept_columns(dataclasses.replace(rule, horizon=0), scores, prompt)


def head_plan(
    rule: RetentionRule, scores: torch.Tensor | None, prompt: PromptFacts, attention_coverage: float
) -> HeadPlan:
    """The plan that `rule` makes of the prompt; `scores` f32 `[T]` are left out if unneeded."""
    scores = scores if rule.needs_scores else None
    rows = rows_of(kept_columns(rule, scores, prompt), kept_count(rule, prompt.tokens))
    return HeadPlan(rule, rows, scores, attention_coverage)


def rows_of(mask: torch.Tensor, count: int | None) -> torch.Tensor:
    """Return the row numbers of a mask `[T]`, ascending int64.

    `count`: how many there are, where that is known. Then the host does not wait for a device.
    """
    if count is None or not mask.is_cuda:
        return mask.nonzero().squeeze(1)
    numbers = torch.arange(len(mask), device=mask.device)
    return numbers.where(mask, len(mask)).sort().values[:count]


def kept_count(rule: RetentionRule, tokens: int) -> int | None:
    """Return how many of a prompt's rows the rule keeps; None if that depends on the prompt."""
    if rule.full:
        return min(tokens, rule.horizon or tokens)
    overlaps = rule.has_budget and not rule.budget_beyond
    generated = rule.generated_window and rule.generated_from < tokens
    if rule.horizon or rule.needs_flags or overlaps or generated:
        return None
    kept = min(tokens, rule.sinks + rule.recent_rows)
    return kept + min(rule.budget(tokens), tokens - kept)


def full_rule(shape: LayerShape) -> RetentionRule:
    """Everything that a later query of this layer can still see."""
    return RetentionRule(full=True, horizon=shape.sliding_window or 0)


def full_plan(prompt: PromptFacts, shape: LayerShape) -> LayerPlan:
    """Every head keeps everything."""
    head = head_plan(full_rule(shape), None, prompt, 1.0)
    return LayerPlan(shape, (head,) * shape.kv_heads)


def chosen_plan(
    scores: torch.Tensor,
    counts: Sequence[int],
    prompt: PromptFacts,
    shape: LayerShape,
    profile: AttentionProfile | None,
) -> LayerPlan:
    """Each head keeps its `counts[h]` highest `scores` `[H, T]`, and all that is fed later.

    Nothing is chosen again while decoding, so the rule needs no score and no row carries one.
    """
    rule = chosen_rule(shape)
    mask = highest_visible(scores, counts, prompt, shape)
    attention_coverage = coverage_of_rows(profile, mask)
    visible = min(prompt.tokens, shape.sliding_window or prompt.tokens)
    heads = (
        HeadPlan(rule, rows_of(kept, min(count, visible)), None, share)
        for kept, count, share in zip(mask, counts, attention_coverage, strict=True)
    )
    return LayerPlan(shape, tuple(heads))


def chosen_rule(shape: LayerShape) -> RetentionRule:
    """Return the rule that keeps all rows, within the layer's sliding window."""
    return RetentionRule(horizon=shape.sliding_window or 0, generated_window=MAX_TOKENS)


def highest_visible(
    scores: torch.Tensor, counts: Sequence[int], prompt: PromptFacts, shape: LayerShape
) -> torch.Tensor:
    """The `counts[h]` highest scores among what the layer still sees, bool `[H, T]`.

    Of equal scores the earlier position wins.
    """
    first = max(0, prompt.tokens - (shape.sliding_window or prompt.tokens))
    order = scores[:, first:].sort(dim=-1, descending=True, stable=True).indices + first
    mask = torch.zeros_like(scores, dtype=torch.bool)
    for head, count in enumerate(counts):
        mask[head, order[head, :count]] = True
    return mask


def coverage_of_rows(profile: AttentionProfile | None, kept: torch.Tensor) -> list[float]:
    """The share of the profiled mass that lies in each head's `kept` columns, bool `[H, T]`."""
    if profile is None or not profile.edges:
        return [0.0] * kept.shape[0]
    mass = profile.accumulated().mean(1).masked_fill(~kept, 0.0)
    return (mass.sum(-1, dtype=torch.float64) / profile.mass_rows).clamp_(max=1.0).tolist()

"""From a head's rule and scores to the rows it keeps: the same for every policy."""

from __future__ import annotations

import dataclasses

import torch

from kvstore.cache import LayerShape
from kvstore.plans import HeadPlan, LayerPlan, PromptFacts
from kvstore.retention import keep_mask
from kvstore.rules import RetentionRule


def kept_columns(
    rule: RetentionRule, scores: torch.Tensor | None, prompt: PromptFacts
) -> torch.Tensor:
    """What `rule` keeps once the whole prompt has been seen, bool `[T]`."""
    device = prompt.classes.device if scores is None else scores.device
    positions = torch.arange(prompt.tokens, dtype=torch.int32, device=device)
    return keep_mask(rule, positions, scores, prompt.classes.to(device), prompt.tokens)


def covered_columns(
    rule: RetentionRule, scores: torch.Tensor | None, prompt: PromptFacts
) -> torch.Tensor:
    """The columns whose far mass `rule` covers, bool `[T]`.

    A row past the horizon is gone at the prompt's end, but covered every query that could see it.
    """
    return kept_columns(dataclasses.replace(rule, horizon=0), scores, prompt)


def head_plan(
    rule: RetentionRule, scores: torch.Tensor | None, prompt: PromptFacts, recovered: float
) -> HeadPlan:
    """The plan that `rule` makes of the prompt; `scores` f32 `[T]` are left out if unneeded."""
    scores = scores if rule.needs_scores else None
    rows = kept_columns(rule, scores, prompt).nonzero().squeeze(1)
    return HeadPlan(rule, rows, scores, recovered)


def full_rule(shape: LayerShape) -> RetentionRule:
    """Everything that a later query of this layer can still see."""
    return RetentionRule(full=True, horizon=shape.sliding_window or 0)


def full_plan(prompt: PromptFacts, shape: LayerShape) -> LayerPlan:
    """Every head keeps everything."""
    head = head_plan(full_rule(shape), None, prompt, 1.0)
    return LayerPlan(shape, (head,) * shape.kv_heads)

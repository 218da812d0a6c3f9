"""Selection of the rows that a head's rule keeps."""

from __future__ import annotations

import torch

from kvstore.rules import RetentionRule

# tokens that are fed after the prompt come under the rules in blocks of so many, counted from the
# first of them; part of what a rule means, so that scheduling never changes an answer
RETENTION_CHUNK_TOKENS = 256


def keep_mask(
    rule: RetentionRule,
    positions: torch.Tensor,
    scores: torch.Tensor | None,
    flags: torch.Tensor | None,
    length: int,
) -> torch.Tensor:
    """The rows that stay once `length` tokens have been seen, bool `[R]`, in any row order.

    `positions` int `[R]`, each below `length`; `scores` f32 `[R]` and `flags` uint8 `[R]` are
    looked at only where the rule needs them. The budget is taken of the rows given, a row past
    the horizon among them, and the horizon is applied last.
    """
    kept = _kept_by_clauses(rule, positions, flags, length)
    if rule.has_budget:
        assert scores is not None, "a rule with a budget has a score per row"
        candidates = scores.masked_fill(kept, -torch.inf) if rule.budget_beyond else scores
        if scores.is_cuda:
            kept |= _highest_without_waiting(candidates, positions, kept, rule, length)
        else:
            competing = int(kept.logical_not().sum()) if rule.budget_beyond else scores.shape[0]
            kept |= _highest(candidates, positions, competing, rule.budget(length))
    if rule.horizon:
        kept &= positions > length - 1 - rule.horizon
    return kept


def _kept_by_clauses(
    rule: RetentionRule, positions: torch.Tensor, flags: torch.Tensor | None, length: int
) -> torch.Tensor:
    if rule.full:
        return torch.ones_like(positions, dtype=torch.bool)
    # `length − 1 − p < w` reads `p > length − 1 − w`, so that a row costs one comparison
    kept = positions > length - 1 - rule.recent_rows
    if rule.sinks:
        kept |= positions < rule.sinks
    if rule.generated_window:
        first = max(rule.generated_from, length - rule.generated_window)
        kept |= positions >= first
    if rule.needs_flags:
        assert flags is not None, "a rule that protects classes has a flag per row"
        kept |= (flags & int(rule.protected)) != 0
    return kept


def _highest_without_waiting(
    scores: torch.Tensor,
    positions: torch.Tensor,
    kept: torch.Tensor,
    rule: RetentionRule,
    length: int,
) -> torch.Tensor:
    """The same rows as `_highest`, by a sort instead of numbers that the host would wait for."""
    order = positions.argsort(stable=True)
    order = order[scores[order].argsort(descending=True, stable=True)]
    chosen = torch.zeros_like(kept)
    count = rule.budget(length)
    chosen[order[:count]] = torch.ones_like(kept[:count])
    competing = (~kept).sum() if rule.budget_beyond else len(scores) + torch.zeros_like(order[:1])
    return chosen | (count >= competing)


def _highest(
    scores: torch.Tensor, positions: torch.Tensor, competing: int, count: int
) -> torch.Tensor:
    """The `count` highest scores, bool `[R]`; of equal scores the earlier position wins.

    Rows that do not compete have score −inf; they may count as chosen if all that do are.
    """
    if count >= competing:
        return torch.ones_like(scores, dtype=torch.bool)
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = torch.topk(scores, count, sorted=False).values.amin()
    chosen = scores >= threshold
    surplus = int(chosen.sum()) - count
    if surplus:
        tied = (scores == threshold).nonzero().squeeze(1)
        latest = torch.topk(positions[tied], surplus).indices
        chosen[tied[latest]] = False
    return chosen

"""A KV head as a list of rows: what the pool and the kernels must agree with, slow and obvious."""

from __future__ import annotations

import dataclasses

import torch

from kvstore.rules import RetentionRule, ScoreUpdate

# scores closer than this may be ranked either way by f32
NEAR = 1e-5


@dataclasses.dataclass
class Row:
    position: int
    key: torch.Tensor
    value: torch.Tensor
    flag: int
    score: float = 0.0


class SlowHead:
    """Rows of a head by position, in float64, without pages, slots or moves."""

    def __init__(self, rule: RetentionRule, rows: list[Row]) -> None:
        self.rule = rule
        self.rows = rows

    def attend(
        self, queries: torch.Tensor, new_rows: list[Row], scale: float, window: int | None
    ) -> tuple[torch.Tensor, list[float]]:
        """Queries `[G, m, D]` over the rows held and causally over the fed ones."""
        rows = self.rows + new_rows
        keys = torch.stack([row.key for row in rows]).double()
        values = torch.stack([row.value for row in rows]).double()
        positions = torch.tensor([row.position for row in rows])
        own = torch.tensor([row.position for row in new_rows])
        distance = own[:, None] - positions
        hidden = (distance < 0) | (distance >= (window or 10**9))
        logits = queries.double() @ keys.T * scale
        probabilities = logits.masked_fill(hidden, -torch.inf).softmax(-1)
        row_attention = probabilities.sum(1).mean(0)
        return probabilities @ values, [float(share) for share in row_attention]

    def retain(
        self, new_rows: list[Row], row_attention: list[float], length: int, chosen: set[int]
    ) -> int:
        """Apply the rule, and say how many held rows went.

        `chosen` are the positions the other side kept: of rows whose scores f32 cannot tell
        apart it may have kept either, and the same ones stay here.
        """
        rule, held = self.rule, len(self.rows)
        if rule.score_update is ScoreUpdate.DECAYED:
            for row in self.rows:
                row.score *= rule.score_decay ** len(new_rows)
        rows = self.rows + new_rows
        if rule.score_update is not ScoreUpdate.NONE:
            for row, share in zip(rows, row_attention, strict=True):
                row.score += share
        kept = self._kept(rows, length)
        disputed = [row.score for row in rows if row.position in kept ^ chosen]
        if disputed and len(kept) == len(chosen) and max(disputed) - min(disputed) < NEAR:
            kept = chosen
        self.rows = [row for row in rows if row.position in kept]
        return sum(row.position not in kept for row in rows[:held])

    def _kept(self, rows: list[Row], length: int) -> set[int]:
        rule = self.rule
        kept = {row.position for row in rows if self._by_clause(row, length)}
        if rule.has_budget:
            rivals = [row for row in rows if not (rule.budget_beyond and row.position in kept)]
            ranked = sorted(rivals, key=lambda row: (-row.score, row.position))
            kept |= {row.position for row in ranked[: rule.budget(length)]}
        if rule.horizon:
            kept = {position for position in kept if length - 1 - position < rule.horizon}
        return kept

    def _by_clause(self, row: Row, length: int) -> bool:
        rule, age = self.rule, length - 1 - row.position
        return (
            rule.full
            or bool(row.flag & rule.protected)
            or row.position < rule.sinks
            or age < rule.window
            or age < rule.floor_rows - rule.sinks
            or (row.position >= rule.generated_from and age < rule.generated_window)
        )

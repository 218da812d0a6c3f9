"""Base of policies with a budget: their parameters, and the numbers of rows."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from kvstore.plans import LayerFacts, PromptFacts
from kvstore.policies.base import Scope
from kvstore.policies.budget import Budget, rows_per_head, visible_rows
from kvstore.policies.parameters import budget, share, to_parameters, tokens


@dataclasses.dataclass(frozen=True, slots=True)
class Budgeted:
    """`budget` (see `Budget`) is of the whole cache, retrieval heads included.

    `sinks` first positions and at least `floor_rows` rows a head are kept whatever the budget.
    `retrieval_ratio`: the share of KV heads, best at retrieving, that keep everything.
    """

    scope: ClassVar[Scope] = Scope.LAYER
    uses_filters: ClassVar[bool] = False
    weighs_rows: ClassVar[bool] = False
    # what a row's score and log-weight take, where it has them
    mark_bytes: ClassVar[int] = 0

    budget: Budget = budget(0.3)
    sinks: int = tokens(4)
    floor_rows: int = tokens(32)
    retrieval_ratio: float = share(0.0)

    @property
    def uses_sensitivity(self) -> bool:
        return False

    def parameters(self) -> dict[str, object]:
        return to_parameters(self)

    def keeps_everything(self) -> bool:
        return self.budget.ratio == 1

    def rows(self, prompt: PromptFacts, layer: LayerFacts) -> int:
        """Rows for each head that is not a retrieval head."""
        return rows_per_head(
            self.budget, prompt, layer, mark_bytes=self.mark_bytes, floor_rows=self.floor_rows
        )


def with_first_and_last(
    scores: torch.Tensor, first: int, last: int, prompt: PromptFacts, layer: LayerFacts
) -> torch.Tensor:
    """`scores` `[H, T]` with the first and the last columns above all others, the last foremost.

    In a layer with a sliding window the first columns it still sees are no sinks.
    """
    lifted = scores.clone()
    if visible_rows(prompt, layer.shape) == prompt.tokens:
        lifted[:, :first] = torch.finfo(scores.dtype).max / 2
    if last:
        lifted[:, -last:] = torch.finfo(scores.dtype).max
    return lifted

"""Coverage: for each head the smallest window and heaviest columns that cover its attention.

FastGen's principle with a finer choice than its five sets.
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
from kvstore.policies.parameters import flag, ratio, share, to_parameters, token_grid, tokens
from kvstore.policies.selection import full_plan, full_rule, head_plan
from kvstore.rules import RetentionRule, ScoreUpdate


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Choice:
    """One window's answer for all heads.

    `columns` int64 `[H]` needed beyond the window, and `attention_coverage` f64 `[H]` with them;
    `scores` f32 `[H, T]` give the order in which columns are taken.
    """

    window: int
    columns: torch.Tensor
    attention_coverage: torch.Tensor
    scores: torch.Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class Coverage:
    """Sinks, the last `w` rows and the `k` columns of most mass beyond `w`, cheapest (w, k).

    `recovery` is the share of attention mass to cover; 1 means full without profiling. `windows`
    is the grid for `w`. `value_weighted`: mass counts by the norm of the value it fetches, which
    needs fewer rows for the same divergence. `strict`: every query head of the group must be
    covered, not just their mean. `grow`: the budget stays the same share of the length while
    decoding, instead of the same number of rows. `profile_rows`: query rows to sample, 0 for all.
    `retrieval_ratio`: the share of KV heads, best at retrieving, that keep everything.
    """

    name: ClassVar[str] = "coverage"
    scope: ClassVar[Scope] = Scope.LAYER
    uses_filters: ClassVar[bool] = False
    uses_sensitivity: ClassVar[bool] = False
    weighs_rows: ClassVar[bool] = False

    recovery: float = ratio(0.99)
    windows: tuple[int, ...] = token_grid((16, 32, 64, 128, 256, 512))
    sinks: int = tokens(4)
    floor_rows: int = tokens(32)
    strict: bool = flag(False)
    value_weighted: bool = flag(True)
    grow: bool = flag(True)
    profile_rows: int = tokens(0)
    retrieval_ratio: float = share(0.0)

    def parameters(self) -> dict[str, object]:
        return to_parameters(self)

    def profile_request(self, tokens: int, shape: LayerShape) -> ProfileRequest | None:
        windows = self._useful_windows(tokens, shape)
        if self.recovery == 1 or not windows:
            return None
        return ProfileRequest((0, *windows), self.profile_rows, self.value_weighted)

    def plan(
        self, profile: AttentionProfile | None, prompt: PromptFacts, layer: LayerFacts
    ) -> LayerPlan:
        shape = layer.shape
        if profile is None:
            return full_plan(prompt, shape)
        choices = [
            self._choose(profile, window) for window in self._useful_windows(prompt.tokens, shape)
        ]
        columns = torch.stack([choice.columns for choice in choices])
        windows = [choice.window for choice in choices]
        # ties go to the smaller window
        best = torch.stack([w + c for w, c in zip(windows, columns, strict=True)]).argmin(0)[None]
        shares = torch.stack([choice.attention_coverage for choice in choices])
        # all numbers of the layer together: each is waited for on a device
        chosen = torch.cat((best, columns.gather(0, best), shares.gather(0, best))).tolist()
        heads = (
            self._plan_head(choices[int(number)], head, int(count), share, prompt, shape)
            for head, (number, count, share) in enumerate(zip(*chosen, strict=True))
        )
        return LayerPlan(shape, tuple(heads))

    def _useful_windows(self, prompt_tokens: int, shape: LayerShape) -> tuple[int, ...]:
        """The grid raised to the floor, as far as it is cheaper than everything."""
        everything = min(prompt_tokens, shape.sliding_window or prompt_tokens)
        grid = {max(window, self.floor_rows - self.sinks) for window in self.windows}
        return tuple(sorted(w for w in grid if w + self.sinks < everything))

    def _choose(self, profile: AttentionProfile, window: int) -> _Choice:
        """Choose the columns that each head needs beyond `window`."""
        far = profile.beyond(window).double()
        scores = profile.beyond(window).mean(1)
        order = scores[:, self.sinks :].sort(dim=-1, descending=True, stable=True).indices
        gains = far[:, :, self.sinks :].gather(2, order[:, None].expand(-1, far.shape[1], -1))
        # what no window or sink covers, after 0, 1, 2, … columns have been taken
        lost = gains.sum(-1, keepdim=True) - torch.nn.functional.pad(gains.cumsum(-1), (1, 0))
        shares = 1 - lost / profile.tokens
        covered = shares.amin(1) if self.strict else shares.mean(1)
        columns = (covered < self.recovery).sum(-1)
        attention_coverage = covered.gather(1, columns[:, None]).squeeze(1)
        return _Choice(window, columns, attention_coverage, scores)

    def _plan_head(
        self,
        choice: _Choice,
        head: int,
        columns: int,
        share: float,
        prompt: PromptFacts,
        shape: LayerShape,
    ) -> HeadPlan:
        everything = min(prompt.tokens, shape.sliding_window or prompt.tokens)
        if self.sinks + choice.window + columns >= everything:
            return head_plan(full_rule(shape), None, prompt, 1.0)
        rule = RetentionRule(
            horizon=shape.sliding_window or 0,
            sinks=self.sinks,
            window=choice.window,
            floor_rows=self.floor_rows,
            budget_rows=0 if self.grow else columns,
            budget_ratio=columns / prompt.tokens if self.grow else 0.0,
            budget_beyond=True,
            score_update=ScoreUpdate.SUM if columns else ScoreUpdate.NONE,
        )
        return head_plan(rule, choice.scores[head], prompt, share)

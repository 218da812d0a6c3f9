"""KVMerger: neighbours whose keys are alike become one row.

Source: Wang et al., Model Tells You Where to Merge: Adaptive KV Cache Merging for LLMs on
Long-Context Tasks (arXiv 2407.08454). Tokens in a row belong together where the cosine of each key
with the next is above a threshold; the latest tokens and the heaviest are left out. A run becomes
one row: its pivot, the member of most accumulated attention, gives the position, and a Gaussian of
the distance from its key weighs the mean of the keys and of the values.

The paper sets the threshold and gets what it gets; here it is, in each head, the one that meets
the budget. Its width of the Gaussian is given by the weights that depend on it; here it is the mean
distance from the pivot over the root of 2. It multiplies the merged value by the number N of
tokens; here log N is added to the row's logit, so that the row draws what its tokens drew. The
first two layers and the last, which it leaves whole beside its budget, are merged as all others
are: out of the same budget they cost more than they give (KL .034 in place of .025 at half of the
rows). Nothing is merged while decoding.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from kvstore.cache import LOG_WEIGHT_BYTES, LayerShape
from kvstore.plans import (
    AttentionProfile,
    FittedRows,
    HeadPlan,
    LayerFacts,
    LayerPlan,
    ProfileRequest,
    PromptFacts,
)
from kvstore.policies.budget import visible_rows
from kvstore.policies.budgeted import Budgeted, with_first_and_last
from kvstore.policies.parameters import ratio, share
from kvstore.policies.row_merging import merge_rows
from kvstore.policies.selection import chosen_rule, coverage_of_rows, full_plan, highest_visible
from kvstore.rules import share_of


@dataclasses.dataclass(frozen=True, slots=True)
class KVMerger(Budgeted):
    """`recent_ratio` and `heavy_ratio` of the budget are for rows that are not merged."""

    name: ClassVar[str] = "kvmerger"
    mark_bytes: ClassVar[int] = LOG_WEIGHT_BYTES
    weighs_rows: ClassVar[bool] = True

    recent_ratio: float = ratio(0.34)
    heavy_ratio: float = share(0.24)

    def profile_request(self, tokens: int, shape: LayerShape) -> ProfileRequest | None:
        return None if self.keeps_everything() else ProfileRequest(keys=True, values=True)

    def plan(
        self, profile: AttentionProfile | None, prompt: PromptFacts, layer: LayerFacts
    ) -> LayerPlan:
        rows, visible = self.rows(prompt, layer), visible_rows(prompt, layer.shape)
        if profile is None or profile.keys is None or profile.values is None or rows >= visible:
            return full_plan(prompt, layer.shape)
        mass = profile.accumulated().mean(1)
        apart = self._apart(mass, rows, prompt, layer)
        # what a layer with a sliding window sees no more is in no run
        apart[:, : prompt.tokens - visible] = True
        runs = [
            alike_runs(k, of_head, alone, prompt.tokens - visible, rows)
            for k, of_head, alone in zip(profile.keys, mass, apart, strict=True)
        ]
        kept = torch.zeros_like(apart)
        for head, run in enumerate(runs):
            kept[head, run.pivots] = True
        rule, attention_coverage = chosen_rule(layer.shape), coverage_of_rows(profile, kept)
        parts = zip(runs, profile.keys, profile.values, attention_coverage, strict=True)
        heads = (
            HeadPlan(rule, run.pivots, None, covered, merged_runs(run, k, v))
            for run, k, v, covered in parts
        )
        return LayerPlan(layer.shape, tuple(heads))

    def _apart(
        self, mass: torch.Tensor, rows: int, prompt: PromptFacts, layer: LayerFacts
    ) -> torch.Tensor:
        """Return unmerged rows, bool `[H, T]`: sinks, latest rows and the heaviest others."""
        recent = max(share_of(self.recent_ratio, rows), self.floor_rows - self.sinks)
        # one row at least is left for what is merged
        recent = max(1, min(recent, rows - self.sinks - 1))
        sinks = self.sinks if visible_rows(prompt, layer.shape) == prompt.tokens else 0
        # a heavy row takes two: it may cut a run
        heavy = min(share_of(self.heavy_ratio, rows), (rows - sinks - recent - 1) // 2)
        ranked = with_first_and_last(mass, sinks, recent, prompt, layer)
        counts = [sinks + recent + max(0, heavy)] * layer.shape.kv_heads
        return highest_visible(ranked, counts, prompt, layer.shape)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """A head's tokens in runs: `owners` int64 `[T]`, the run of each, -1 for one that is lost.

    `pivots` int64, ascending: the position of each run's row.
    """

    owners: torch.Tensor
    pivots: torch.Tensor


def alike_runs(
    k: torch.Tensor, mass: torch.Tensor, apart: torch.Tensor, first: int, rows: int
) -> Runs:
    """Runs of neighbours in the keys `k` `[T, D]`, as many as `rows` where there can be so few.

    Tokens that are `apart`, bool `[T]`, are runs of their own, and those before `first` in none;
    `mass` f32 `[T]` chooses the pivots.
    """
    alike = torch.cosine_similarity(k[1:].float(), k[:-1].float(), dim=-1)
    joinable = ~(apart[1:] | apart[:-1])
    most = min(len(k) - first - rows, int(joinable.sum()))
    order = alike.masked_fill(~joinable, -torch.inf).sort(descending=True, stable=True).indices
    begins = torch.ones_like(apart)
    begins[order[:most] + 1] = False
    begins[:first] = False
    owners = begins.cumsum(0) - 1
    of_visible, count = owners[first:], int(begins.sum())
    heaviest = mass.new_zeros(count).scatter_reduce_(0, of_visible, mass[first:], "amax")
    # of equal ones the earlier
    pivotal = (mass[first:] == heaviest[of_visible]).nonzero().squeeze(1)
    pivots = torch.full_like(of_visible[:count], len(k))
    pivots.scatter_reduce_(0, of_visible[pivotal], pivotal + first, "amin")
    return Runs(owners, pivots)


def merged_runs(runs: Runs, k: torch.Tensor, v: torch.Tensor) -> FittedRows:
    """A row for each run of `k`, `v` `[T, D]`."""
    owners, count = runs.owners, len(runs.pivots)
    distances = (k.float() - k[runs.pivots[owners]].float()).norm(dim=-1)
    owned = owners >= 0
    sums = distances.new_zeros(count).index_add_(0, owners[owned], distances[owned])
    means = sums / torch.bincount(owners[owned], minlength=count)
    # a run of equal keys has no width, and all its distances are 0
    relative = distances / means[owners].clamp_min(torch.finfo(means.dtype).tiny)
    return merge_rows(k, v, owners, count, (-relative.square()).exp())

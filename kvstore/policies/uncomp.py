"""UNComp: heads whose queries carry more information get more of the budget.

Source: Xiong et al., UNComp (arXiv 2410.03090). What a head carries is the truncated entropy of
its queries: centred, brought to length 1, the eigenvalues of their covariance as shares of its
trace, and of the highest of these the sum of -s log s, over log D. The heads of a layer fall by it
into groups of like size, budgets fall from group to group by the same step, and within a head the
last few tokens vote, as in SnapKV.

The paper finds the groups once, on other text; here each prompt finds its own. It leaves the step
open (`spread`). Its groups of layers, which prune hidden states in the prefill, would change the
prompt's forward pass, and are left out. Entropies are means over a group of query heads.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import torch

from kvstore.cache import LayerShape
from kvstore.plans import AttentionProfile, LayerFacts, LayerPlan, ProfileRequest, PromptFacts
from kvstore.policies.budget import visible_rows
from kvstore.policies.budgeted import with_first_and_last
from kvstore.policies.layer_budgets import in_proportion
from kvstore.policies.parameters import share, tokens
from kvstore.policies.selection import chosen_plan, full_plan
from kvstore.policies.snapkv import SnapKV, pooled

# eigenvalues that count, as in the authors' code
_TRUNCATED = 32
# a head of the last group is never left without
_LEAST_SHARE = 0.05


@dataclasses.dataclass(frozen=True, slots=True)
class UNComp(SnapKV):
    """`groups` of heads in a layer; the first has 1 + `spread` equal parts, the last 1 - `spread`.

    `queries`: how many of the prompt's positions the entropy is taken of.
    """

    name: ClassVar[str] = "uncomp"

    window: int = tokens(8, least=1)
    groups: int = tokens(2, least=1)
    # at a fifth of the rows of two passages KL is .0887 at 0, .0826 here, .0862 at .3, .1051 at .6
    spread: float = share(0.15)
    queries: int = tokens(512, least=1)

    def profile_request(self, tokens: int, shape: LayerShape) -> ProfileRequest | None:
        if self.keeps_everything():
            return None
        return ProfileRequest(recent_rows=self.window, late_queries=self.queries)

    def plan(
        self, profile: AttentionProfile | None, prompt: PromptFacts, layer: LayerFacts
    ) -> LayerPlan:
        if profile is None or profile.reference is None:
            return full_plan(prompt, layer.shape)
        votes = pooled(profile.accumulated().mean(1), self.pool)
        scores = with_first_and_last(votes, self.sinks, self.window, prompt, layer)
        entropies = matrix_entropies(profile.reference.q).view(layer.shape.kv_heads, -1).mean(1)
        counts = self._by_entropy(entropies.tolist(), prompt, layer)
        return chosen_plan(scores, counts, prompt, layer.shape, profile)

    def _by_entropy(
        self, entropies: Sequence[float], prompt: PromptFacts, layer: LayerFacts
    ) -> list[int]:
        """Rows for each head of the layer; retrieval heads are left out."""
        visible, equal = visible_rows(prompt, layer.shape), self.rows(prompt, layer)
        counts = [visible] * layer.shape.kv_heads
        sharing = [
            head for head in range(layer.shape.kv_heads) if head not in layer.uncompressed_heads
        ]
        ranked = sorted(sharing, key=lambda head: -entropies[head])
        if not ranked:
            return counts
        shares = group_shares(len(ranked), self.groups, self.spread)
        ones, least = [1] * len(ranked), [min(self.floor_rows, visible)] * len(ranked)
        rows = in_proportion(shares, ones, least, [visible] * len(ranked), equal * len(ranked))
        for head, count in zip(ranked, rows, strict=True):
            counts[head] = count
        return counts


def group_shares(heads: int, groups: int, spread: float) -> list[float]:
    """Return each head's share relative to an equal one, by falling entropy."""
    groups = min(groups, heads)
    if groups == 1:
        return [1.0] * heads
    step = 2 * spread / (groups - 1)
    of_groups = (1 + spread - step * (rank * groups // heads) for rank in range(heads))
    return [max(_LEAST_SHARE, of_group) for of_group in of_groups]


def matrix_entropies(q: torch.Tensor) -> torch.Tensor:
    """The truncated matrix entropy of the queries `q` `[HQ, n, D]`, f64 `[HQ]`, from 0 to 1."""
    centred = q.double() - q.double().mean(1, keepdim=True)
    rows = torch.nn.functional.normalize(centred, dim=-1)
    eigenvalues = torch.linalg.eigvalsh(rows.mT @ rows).clamp_min(0)
    total = eigenvalues.sum(-1, keepdim=True).clamp_min(torch.finfo(eigenvalues.dtype).tiny)
    highest = (eigenvalues / total)[:, -_TRUNCATED:]
    entropies: torch.Tensor = torch.special.entr(highest).sum(-1)
    return entropies / math.log(max(2, q.shape[2]))

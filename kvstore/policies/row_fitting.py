"""Fits the rows that a head keeps so that they stand for the rows it drops.

Source: Zweiger et al., Fast KV Compaction via Attention Matching (arXiv 2602.16284). Keys stay as
they are. Each kept row gets a log-weight, which corrects how much of the attention the kept rows
draw beside what is fed later, and a value that corrects what they give for it, both by least
squares over reference queries. With the keys fixed the two have closed or convex solutions.
"""

from __future__ import annotations

import math

import torch

from kvstore.plans import FittedRows

# the paper bounds log-weights likewise: beyond, single queries decide
_MOST_LOG_WEIGHT = 3.0
_WEIGHT_STEPS = 200
_POWER_STEPS = 20
# the power iteration comes from below, and a step that is too long diverges
_NORM_MARGIN = 1.05
# of the mean square share of a row: draws each value towards the row's own where few queries read
# it. Measured: .01 to .1 are equally good, at 1 a third of the gain is lost
_RIDGE = 0.1


def fit_rows(shares: torch.Tensor, values: torch.Tensor, rows: torch.Tensor) -> FittedRows:
    """The fit of the kept `rows` int64 `[R]` to what reference queries get from all T rows.

    `shares` f32 `[m, T]`: each query's attention over the T rows, which sums to 1; `values`
    `[T, D]`.
    """
    kept = shares[:, rows]
    weights = _fit_weights(kept)
    mixed = kept * weights
    # a query that pays nothing to any kept row asks nothing of them
    mixed /= mixed.sum(1, keepdim=True).clamp_min(torch.finfo(mixed.dtype).tiny)
    own = values[rows].float()
    missing = shares @ values.float() - mixed @ own
    # in float64: kept rows may be near copies of one another
    gram, right = (mixed.mT @ mixed).double(), (mixed.mT @ missing).double()
    gram.diagonal().add_(_RIDGE * float(gram.diagonal().mean()))
    change = torch.linalg.solve(gram, right)
    return FittedRows((own + change.float()).to(values.dtype), weights.log())


def _fit_weights(kept: torch.Tensor) -> torch.Tensor:
    """f32 `[R]` weights within their bounds that bring each query's kept shares nearest to 1.

    Non-negative least squares by projected gradients with Nesterov's momentum, from weights of 1.
    """
    gram, right = (kept.mT @ kept).double(), kept.sum(0, dtype=torch.float64)
    step = 1 / max(_largest_eigenvalue(gram), torch.finfo(torch.float32).tiny)
    bound = math.exp(_MOST_LOG_WEIGHT)
    weights = torch.ones_like(right)
    ahead, momentum = weights, 1.0
    for _ in range(_WEIGHT_STEPS):
        before, weights = weights, (ahead - step * (gram @ ahead - right)).clamp(1 / bound, bound)
        faster = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead, momentum = weights + (momentum - 1) / faster * (weights - before), faster
    return weights.float()


def _largest_eigenvalue(gram: torch.Tensor) -> float:
    vector = torch.ones(gram.shape[0], dtype=gram.dtype, device=gram.device)
    for _ in range(_POWER_STEPS):
        vector = torch.nn.functional.normalize(gram @ vector, dim=0)
    return float(vector @ (gram @ vector)) * _NORM_MARGIN

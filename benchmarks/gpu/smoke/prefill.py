"""Kernels of prefill for a layer: attention with its log-sum-exp, column mass, column peaks."""

from __future__ import annotations

import torch

from benchmarks.figures import Figure
from benchmarks.gpu.figures import Figures
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.smoke.errors import error, figure, twice
from kvstore.kernels.column_mass import reference as mass_reference
from kvstore.kernels.column_mass.input import ColumnMassInput
from kvstore.kernels.column_mass.kernel import column_mass
from kvstore.kernels.column_peak import reference as peak_reference
from kvstore.kernels.column_peak.kernel import column_peak
from kvstore.kernels.prefill_attention.op import prefill_attention

_HEADS, _GROUP, _SIZE = 2, 4, 128
_SCALE = _SIZE**-0.5
_EDGES = (0, 16, 64, 100, 400)
# attention: results are in bfloat16; its log-sum-exp, masses and peaks: as in the kernels' tests
_OUT, _LSE, _MASS, _PEAK = (1e-2, 1 / 64), (1e-3, 1e-4), (2e-5, 2e-5), (1e-7, 2e-5)


def check(here: Setting) -> Figures:
    """Yield the errors of a whole prompt and of its last chunk, with a window and without."""
    tokens = 1500 if here.device.type == "cuda" else 100
    k, v = torch.randn(2, _HEADS, tokens, _SIZE, device=here.device).bfloat16()
    q = torch.randn(_HEADS * _GROUP, tokens, _SIZE, device=here.device).bfloat16()
    for name, fed, window in (
        ("whole", tokens, None),
        ("chunk", tokens // 3, None),
        ("window", tokens // 3, tokens // 2),
    ):
        yield from _check_chunk(here, name, q[:, -fed:], k, v, window)


def _check_chunk(
    here: Setting,
    name: str,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    window: int | None,
) -> Figures:
    (out, lse), same = twice(
        here.part,
        lambda: list(prefill_attention(q, k, v, scale=_SCALE, sliding_window=window)),
    )
    exact, sums = _attention(q, k, v, window)
    worst = max(error(out, exact, *_OUT), error(lse, sums, *_LSE))
    yield f"smoke_prefill_attention_{name}", figure(worst, same, "float64, bfloat16's tolerance")
    first = k.shape[1] - q.shape[1]
    positions = torch.arange(first, k.shape[1])
    for kind, norms in (("mass", None), ("weighted_mass", v.float().norm(dim=-1))):
        given = ColumnMassInput(
            q, k, sums.float(), positions, _EDGES, _SCALE, window, value_norms=norms
        )
        shape = (q.shape[0], len(_EDGES), k.shape[1])

        def masses(
            given: ColumnMassInput = given, shape: tuple[int, ...] = shape
        ) -> list[torch.Tensor]:
            far = torch.zeros(shape, device=here.device)
            column_mass(far, given)
            return [far]

        (far,), same = twice(here.part, masses)
        wanted = torch.zeros(shape, dtype=torch.float64, device=here.device)
        mass_reference.column_mass(wanted, given)
        yield f"smoke_column_{kind}_{name}", figure(error(far, wanted, *_MASS), same, "float64")
    yield f"smoke_column_peak_{name}", _peaks(here, q, k, sums.float(), first, window)


def _peaks(
    here: Setting,
    q: torch.Tensor,
    k: torch.Tensor,
    lse: torch.Tensor,
    first: int,
    window: int | None,
) -> Figure:
    def peaks() -> list[torch.Tensor]:
        found = torch.zeros(q.shape[0], k.shape[1], device=here.device)
        column_peak(found, q, k, lse, first, scale=_SCALE, sliding_window=window)
        return [found]

    (found,), same = twice(here.part, peaks)
    wanted = torch.zeros(found.shape, dtype=torch.float64, device=here.device)
    peak_reference.column_peak(wanted, q, k, lse, first, scale=_SCALE, sliding_window=window)
    return figure(error(found, wanted, *_PEAK), same, "float64")


def _attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return causal attention and its log-sum-exp in float64; queries are the last positions."""
    m, n = q.shape[1], k.shape[1]
    keys, values = (x.double().repeat_interleave(_GROUP, 0) for x in (k, v))
    distance = torch.arange(n - m, n, device=q.device)[:, None] - torch.arange(n, device=q.device)
    hidden = (distance < 0) | (distance >= (window or n))
    logits = (q.double() @ keys.mT * _SCALE).masked_fill(hidden, -torch.inf)
    return logits.softmax(-1) @ values, logits.logsumexp(-1)

"""Attention and column mass of a layer, as prefill computes them, against flash attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.figures import Figure
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.timing import Timer
from kvstore.kernels.column_mass.input import ColumnMassInput
from kvstore.kernels.column_mass.kernel import column_mass
from kvstore.kernels.prefill_attention.op import prefill_attention
from kvstore.profiling import sampled_positions

EDGES = (0, 16, 32, 64, 128, 256, 512, 1024, 9831)


def measure(sizes: Sizes, timer: Timer) -> dict[str, Figure]:
    tokens, here, scale = sizes.prompt_tokens, timer.device, sizes.head_size**-0.5
    q = torch.randn(sizes.query_heads, tokens, sizes.head_size, device=here).to(sizes.dtype)
    k, v = torch.randn(2, sizes.kv_heads, tokens, sizes.head_size, device=here).to(sizes.dtype)
    # what a random row's log-sum-exp is, near enough for a timing
    lse = torch.arange(1, tokens + 1, device=here).log().expand(sizes.query_heads, -1).contiguous()
    norms = torch.linalg.vector_norm(v, dim=-1, dtype=torch.float32)

    def profile(rows: int, value_norms: torch.Tensor | None = None) -> Callable[[], None]:
        positions = sampled_positions(rows, tokens)
        chosen = positions.to(here)
        far = torch.zeros(sizes.query_heads, len(EDGES), tokens, device=here)
        queries, sums = q.index_select(1, chosen), lse.index_select(1, chosen)
        return lambda: column_mass(
            far,
            ColumnMassInput(
                queries,
                k,
                sums,
                positions,
                edges=EDGES,
                scale=scale,
                sliding_window=None,
                value_norms=value_norms,
            ),
        )

    attention = timer.seconds(lambda: flash(q, k, v, scale))
    ours = timer.seconds(lambda: prefill_attention(q, k, v, scale=scale))
    against = "the layer's flash attention"
    sampled = profile(sizes.sampled_rows)
    return {
        "flash_attention_seconds": Figure(attention, "seconds", "one layer's prefill"),
        "prefill_attention_ratio": Figure(ours / attention, "ratio", against, 1.1),
        "column_mass_all_ratio": Figure(
            timer.seconds(profile(0)) / attention, "ratio", against, 0.8
        ),
        "column_mass_sampled_ratio": Figure(
            timer.seconds(sampled) / attention, "ratio", against, 0.03
        ),
        "column_mass_weighted_ratio": Figure(
            timer.seconds(profile(0, norms)) / attention, "ratio", against
        ),
    }


def flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Causal attention of `q [HQ, T, D]` over `k`, `v [H, T, D]`."""
    backends = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    with sdpa_kernel(backends):
        return scaled_dot_product_attention(
            q[None], k[None], v[None], is_causal=True, scale=scale, enable_gqa=True
        )

"""Attention and column mass of a layer, as prefill computes them, against torch's attention.

Each of torch's backends is timed by name: left to itself it takes cuDNN's on such a device, which
is about twice as fast as the flash attention that returns the log-sum-exp of any chunk.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.figures import Figure
from benchmarks.gpu.figures import Figures
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.timing import Timer
from kvstore.kernels.column_mass.input import ColumnMassInput
from kvstore.kernels.column_mass.kernel import column_mass
from kvstore.kernels.prefill_attention.op import prefill_attention
from kvstore.profiling import sampled_positions

EDGES = (0, 16, 32, 64, 128, 256, 512, 1024, 9831)
# the targets are against the first: the second gives no log-sum-exp for a later chunk of a prompt
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
_TARGETS = {"prefill_attention": 1.1, "column_mass_all": 0.8, "column_mass_sampled": 0.03}


def measure(sizes: Sizes, timer: Timer) -> Figures:
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

    peers = {}
    for name, seconds in _peers(q, k, v, scale, timer):
        peers[name] = seconds
        yield f"{name}_attention_seconds", Figure(seconds, "seconds", "one layer's prefill")
    for name, call in (
        ("prefill_attention", lambda: prefill_attention(q, k, v, scale=scale)),
        ("column_mass_all", profile(0)),
        ("column_mass_sampled", profile(sizes.sampled_rows)),
        ("column_mass_weighted", profile(0, norms)),
    ):
        taken = timer.seconds(call)
        yield f"{name}_seconds", Figure(taken, "seconds", "one layer's prefill")
        yield from _ratios(name, taken, peers)


def _ratios(name: str, seconds: float, peers: dict[str, float]) -> Figures:
    for peer, theirs in peers.items():
        target = _TARGETS.get(name) if peer == "flash" else None
        against = f"the layer's attention by torch's {peer} backend"
        yield f"{name}_ratio_{peer}", Figure(seconds / theirs, "ratio", against, target)


def _peers(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, timer: Timer
) -> Iterator[tuple[str, float]]:
    """Yield each backend that runs here, and its seconds; torch's own choice if none does."""
    ran = False
    for name, backend in BACKENDS.items():
        try:
            seconds = timer.seconds(functools.partial(dense, q, k, v, scale, backend))
        except RuntimeError as error:
            print(f"{name}: {str(error).splitlines()[0]}", flush=True)
            continue
        ran = True
        yield name, seconds
    if not ran:
        yield "math", timer.seconds(lambda: dense(q, k, v, scale, SDPBackend.MATH))


def dense(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, backend: SDPBackend
) -> torch.Tensor:
    """Causal attention of `q [HQ, T, D]` over `k`, `v [H, T, D]`."""
    with sdpa_kernel(backend):
        return scaled_dot_product_attention(
            q[None], k[None], v[None], is_causal=True, scale=scale, enable_gqa=True
        )

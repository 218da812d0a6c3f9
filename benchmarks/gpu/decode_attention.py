"""Ragged decode attention against the copy bandwidth, dense attention, and itself without skew."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.figures import Figure
from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.head_lengths import head_lengths
from benchmarks.gpu.pool import Pool, fill
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.timing import Timer
from kvstore.kernels.device_batch import DeviceScratch
from kvstore.kernels.ragged_attention.kernel import attend_on_device
from kvstore.kernels.ragged_attention.row_ends import row_ends
from kvstore.row_codecs import RowCodec

# shares of the dense cache's rows
KEPT_RATIOS = (0.5, 0.25, 0.125)
CODECS = ("fp8", "int8", "int8/int4", "int4")


def measure(sizes: Sizes, timer: Timer, ceilings: Ceilings) -> dict[str, Figure]:
    skewed = _lengths(sizes, sizes.mean_rows, timer.device)
    even = torch.full_like(skewed, int(skewed.sum()) // skewed.numel())
    pool = fill(skewed, sizes)
    seconds = timer.seconds(step(pool, sizes))
    read = int(skewed.sum()) * sizes.row_bytes
    figures = {
        "ragged_bandwidth_ratio": Figure(
            read / seconds / ceilings.copy_bytes, "ratio", "copy bandwidth", 0.85
        ),
        "skew_ratio": Figure(
            seconds / timer.seconds(step(fill(even, sizes), sizes)),
            "ratio",
            "the same rows spread evenly",
            1.1,
        ),
        "score_return_ratio": Figure(
            timer.seconds(step(pool, sizes, scored=True)) / seconds,
            "ratio",
            "the same without scores",
            1.1,
        ),
    }
    del pool
    figures |= _of_codecs(skewed, sizes, timer, ceilings)
    return figures | _against_dense(sizes, timer)


def _of_codecs(
    rows: torch.Tensor, sizes: Sizes, timer: Timer, ceilings: Ceilings
) -> dict[str, Figure]:
    figures = {}
    for name in CODECS:
        pool = fill(rows, sizes, codec=RowCodec.parse(name))
        read = int(rows.sum()) * pool.batch.row_pages.layout.row_bytes
        share = read / timer.seconds(step(pool, sizes)) / ceilings.copy_bytes
        figures[f"ragged_bandwidth_ratio_{name}"] = Figure(share, "ratio", "copy bandwidth")
    return figures


def _against_dense(sizes: Sizes, timer: Timer) -> dict[str, Figure]:
    """Times faster than dense attention over the full cache, per the rows that are left."""
    name, seconds = best_dense(sizes, timer)
    figures = {"dense_attention_seconds": Figure(seconds, "seconds", f"one layer, {name}")}
    for kept in KEPT_RATIOS:
        pool = fill(_lengths(sizes, kept * sizes.context, timer.device), sizes)
        speed_up = seconds / timer.seconds(step(pool, sizes))
        figures[f"speed_up_by_rows_at_{kept:g}"] = Figure(
            speed_up * kept, "ratio", "1 / rows kept", 0.9
        )
    return figures


def _lengths(sizes: Sizes, mean: float, device: torch.device) -> torch.Tensor:
    """Int32 `[B, 1, H]`."""
    counts = head_lengths(sizes.sequences * sizes.kv_heads, mean)
    return counts.view(sizes.sequences, 1, sizes.kv_heads).to(device)


def step(pool: Pool, sizes: Sizes, *, scored: bool = False) -> Callable[[], torch.Tensor]:
    """One layer's attention of one fed token per sequence, the prefix sums included."""
    rows, batch = pool.rows, pool.batch
    q = torch.randn(sizes.sequences, sizes.query_heads, sizes.head_size, device=rows.device)
    queries = q.to(sizes.dtype)
    entries = int(rows.sum()) + rows.numel() if scored else 0
    scratch = DeviceScratch(
        (rows + 1).flatten().cumsum(0).view(rows.shape) - rows - 1,
        torch.ones_like(rows, dtype=torch.bool),
        torch.empty(entries, device=rows.device),
        torch.empty(0, dtype=torch.uint8, device=rows.device),
        (scored,),
    )

    def once() -> torch.Tensor:
        row_ends(rows, batch.ends)
        return attend_on_device(
            queries,
            batch,
            0,
            scratch,
            kv_heads=sizes.kv_heads,
            scale=sizes.head_size**-0.5,
            sliding_window=None,
        )

    return once


def best_dense(sizes: Sizes, timer: Timer) -> tuple[str, float]:
    """The fastest of torch's kernels over a dense cache, and its seconds."""
    here = timer.device
    shape = (sizes.sequences, sizes.query_heads, 1, sizes.head_size)
    q = torch.randn(shape, device=here).to(sizes.dtype)
    size = (2, sizes.sequences, sizes.kv_heads, sizes.context, sizes.head_size)
    k, v = torch.randn(size, device=here, dtype=sizes.dtype)
    found = {}
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH):
        # materialised heads make the last of them no contestant where another runs
        if backend is SDPBackend.MATH and found:
            continue
        try:
            with sdpa_kernel(backend):
                found[backend.name] = timer.seconds(
                    lambda: scaled_dot_product_attention(q, k, v, enable_gqa=True)
                )
        except RuntimeError:
            continue
    name = min(found, key=lambda each: found[each])
    return name.lower().replace("_", " "), found[name]

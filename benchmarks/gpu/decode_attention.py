"""Ragged decode attention against the copy bandwidth, dense attention, and itself without skew.

Layers are captured and timed together, because a step computes the prefix sums of rows once for
all of them and waits for no launch between them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.figures import Figure
from benchmarks.gpu.capturing import captured
from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.figures import Figures
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


def measure(sizes: Sizes, timer: Timer, ceilings: Ceilings) -> Figures:
    skewed = _lengths(sizes, sizes.mean_rows, timer.device)
    even = torch.full_like(skewed, int(skewed.sum()) // skewed.numel())
    pool = fill(skewed, sizes)
    seconds = _seconds(pool, sizes, timer)
    read = int(skewed.sum()) * sizes.row_bytes
    share = read / seconds / ceilings.copy_bytes
    yield "ragged_bandwidth_ratio", Figure(share, "ratio", ceilings.copying, 0.85, at_least=True)
    spread = seconds / _seconds(fill(even, sizes), sizes, timer)
    yield "skew_ratio", Figure(spread, "ratio", "the same rows spread evenly", 1.1)
    scored = _seconds(pool, sizes, timer, scored=True) / seconds
    yield "score_return_ratio", Figure(scored, "ratio", "the same without scores", 1.1)
    del pool
    for name in CODECS:
        share = _share(skewed, sizes, timer, ceilings, name)
        yield f"ragged_bandwidth_ratio_{name}", Figure(share, "ratio", ceilings.copying)
    yield from _against_dense(sizes, timer)


def measure_pages(sizes: Sizes, timer: Timer, ceilings: Ceilings) -> Figures:
    """Measure pages of other sizes than the default for 16 bits on CUDA, 64 rows."""
    rows = _lengths(sizes, sizes.mean_rows, timer.device)
    against = f"{ceilings.copying}, pages of {sizes.page_rows} rows of the model's dtype"
    for name, ending in (("model", ""), ("int8", "_int8")):
        share = _share(rows, sizes, timer, ceilings, name)
        yield f"ragged_bandwidth_ratio{ending}_small_pages", Figure(share, "ratio", against)


def measure_one(sizes: Sizes, timer: Timer, ceilings: Ceilings) -> Figures:
    """Measure a layer of one sequence alone, whose few heads have many partial results."""
    for name, count in zip(("short", "long"), sizes.lone_rows, strict=True):
        shape = (1, sizes.measured_layers, sizes.kv_heads)
        rows = torch.full(shape, count, dtype=torch.int32, device=timer.device)
        seconds = _seconds(fill(rows, sizes), sizes, timer) / sizes.measured_layers
        least = sizes.kv_heads * count * sizes.row_bytes / ceilings.copy_bytes
        against = f"one layer, {sizes.kv_heads} heads of {count:,} rows, {least:.2g} s to read"
        yield f"one_sequence_seconds_{name}", Figure(seconds, "seconds", against)


def _share(rows: torch.Tensor, sizes: Sizes, timer: Timer, ceilings: Ceilings, codec: str) -> float:
    """Return the share of the copy bandwidth at which rows of a codec are read."""
    pool = fill(rows, sizes, codec=RowCodec.parse(codec))
    read = int(rows.sum()) * pool.batch.row_pages.layout.row_bytes
    return read / _seconds(pool, sizes, timer) / ceilings.copy_bytes


def _against_dense(sizes: Sizes, timer: Timer) -> Figures:
    """Times faster than dense attention over the full cache, per the rows that are left."""
    name, seconds = best_dense(sizes, timer)
    yield "dense_attention_seconds", Figure(seconds, "seconds", f"one layer, {name}")
    for kept in KEPT_RATIOS:
        pool = fill(_lengths(sizes, kept * sizes.context, timer.device), sizes)
        ours = _seconds(pool, sizes, timer) / sizes.measured_layers
        yield (
            f"speed_up_by_rows_at_{kept:g}",
            Figure(seconds / ours * kept, "ratio", "1 / rows kept", 0.9, at_least=True),
        )


def _lengths(sizes: Sizes, mean: float, device: torch.device) -> torch.Tensor:
    """Int32 `[B, L, H]`."""
    shape = (sizes.sequences, sizes.measured_layers, sizes.kv_heads)
    counts = head_lengths(shape[0] * shape[1] * shape[2], mean)
    return counts.view(shape).to(device)


def _seconds(pool: Pool, sizes: Sizes, timer: Timer, *, scored: bool = False) -> float:
    """Return the time of all layers, captured."""
    return timer.seconds(captured(step(pool, sizes, scored=scored), timer.device))


def step(pool: Pool, sizes: Sizes, *, scored: bool = False) -> Callable[[], torch.Tensor]:
    """Attention of one fed token per sequence in the pool's layers, the prefix sums included."""
    rows, batch = pool.rows, pool.batch
    q = torch.randn(rows.shape[0], sizes.query_heads, sizes.head_size, device=rows.device)
    queries = q.to(sizes.dtype)
    scratch = scratch_of(rows, scored=scored)

    def once() -> torch.Tensor:
        row_ends(rows, batch.ends)
        outs = [
            attend_on_device(
                queries,
                batch,
                layer,
                scratch,
                kv_heads=sizes.kv_heads,
                scale=sizes.head_size**-0.5,
                sliding_window=None,
            )
            for layer in range(rows.shape[1])
        ]
        return outs[-1]

    return once


def scratch_of(rows: torch.Tensor, *, scored: bool, fed: int = 1) -> DeviceScratch:
    """Return room for the attention that every row and fed token receives, if it is wanted."""
    ends = (rows + fed).flatten().cumsum(0)
    entries = int(ends[-1]) if scored else 0
    return DeviceScratch(
        ends.view(rows.shape) - rows - fed,
        torch.ones_like(rows, dtype=torch.bool),
        torch.empty(entries, device=rows.device),
        torch.empty(0, dtype=torch.uint8, device=rows.device),
        (scored,) * rows.shape[1],
    )


def best_dense(sizes: Sizes, timer: Timer) -> tuple[str, float]:
    """The fastest of torch's kernels over a dense cache, and its seconds for a layer."""
    here = timer.device
    shape = (sizes.sequences, sizes.query_heads, 1, sizes.head_size)
    q = torch.randn(shape, device=here).to(sizes.dtype)
    size = (2, sizes.sequences, sizes.kv_heads, sizes.context, sizes.head_size)
    k, v = torch.randn(size, device=here, dtype=sizes.dtype)

    def layers() -> None:
        for _ in range(sizes.measured_layers):
            scaled_dot_product_attention(q, k, v, enable_gqa=True)

    found = {}
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH):
        # materialised heads make the last of them no contestant where another runs
        if backend is SDPBackend.MATH and found:
            continue
        try:
            with sdpa_kernel(backend):
                seconds = timer.seconds(captured(layers, here))
        except RuntimeError as error:
            print(f"{backend.name}: {str(error).splitlines()[0]}", flush=True)
            continue
        found[backend.name] = seconds / sizes.measured_layers
    name = min(found, key=lambda each: found[each])
    return name.lower().replace("_", " "), found[name]

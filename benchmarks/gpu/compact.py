"""The gather of kept rows, coded on the way or not, against the copy bandwidth."""

from __future__ import annotations

import functools

import torch

from benchmarks.figures import Figure
from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.figures import Figures
from benchmarks.gpu.head_lengths import head_lengths
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.timing import Timer
from kvstore.cache import LayerShape
from kvstore.compaction import compact_layer
from kvstore.kernels.compact.kernel import gather_rows
from kvstore.plans import HeadPlan, LayerPlan
from kvstore.row_codecs import KeyValueLayout, RowCodec
from kvstore.rules import RetentionRule

_KEPT_RATIO = 0.25


def measure(sizes: Sizes, timer: Timer, ceilings: Ceilings) -> Figures:
    """One layer of a long prompt, heads of very different sizes."""
    tokens, here = sizes.prompt_tokens, timer.device
    counts = head_lengths(sizes.kv_heads, _KEPT_RATIO * tokens, most=tokens)
    kept = [torch.randperm(tokens, device=here)[:count].sort().values for count in counts.tolist()]
    rows, ends = torch.cat(kept).int(), counts.cumsum(0).int().to(here)
    size = (2, sizes.kv_heads, tokens, sizes.head_size)
    k, v = torch.randn(size, device=here, dtype=sizes.dtype)
    for name, target in (("model", 0.8), ("int8", None), ("int4", None)):
        layout = KeyValueLayout(RowCodec.parse(name), sizes.head_size, sizes.dtype)
        seconds = timer.seconds(functools.partial(gather_rows, k, v, rows, ends, layout))
        moved = int(counts.sum()) * (sizes.row_bytes + layout.row_bytes)
        share = moved / seconds / ceilings.copy_bytes
        figure = "compact_bandwidth_ratio" + ("" if name == "model" else f"_{name}")
        yield figure, Figure(share, "ratio", ceilings.copying, target, at_least=True)
    plan = LayerPlan(
        LayerShape(sizes.kv_heads, sizes.query_heads, sizes.head_size),
        tuple(HeadPlan(RetentionRule(), each, None, 1.0) for each in kept),
    )
    classes = torch.zeros(tokens, dtype=torch.uint8, device=here)
    whole = timer.seconds(lambda: compact_layer(k, v, plan, classes))
    against = "what the gather alone takes at copy bandwidth"
    least = 2 * len(rows) * sizes.row_bytes / ceilings.copy_bytes
    yield "compact_layer_ratio", Figure(least / whole, "ratio", against)

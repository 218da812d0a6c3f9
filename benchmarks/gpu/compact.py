"""The gather of kept rows, coded on the way or not, against the copy bandwidth."""

from __future__ import annotations

import torch

from benchmarks.figures import Figure
from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.head_lengths import head_lengths
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.timing import Timer
from kvstore.codecs import RowCodec, RowCoding
from kvstore.kernels.compact.kernel import gather_rows

_KEPT_RATIO = 0.25


def measure(sizes: Sizes, timer: Timer, ceilings: Ceilings) -> dict[str, Figure]:
    """One layer of a long prompt, heads of very different sizes."""
    tokens, here = sizes.prompt_tokens, timer.device
    counts = head_lengths(sizes.kv_heads, _KEPT_RATIO * tokens, most=tokens)
    rows = [torch.randperm(tokens, device=here)[:count].sort().values for count in counts.tolist()]
    size = (2, sizes.kv_heads, tokens, sizes.head_size)
    k, v = torch.randn(size, device=here, dtype=sizes.dtype)
    figures = {}
    for name, target in (("model", 0.8), ("int8", None), ("int4", None)):
        coding = RowCoding(RowCodec.parse(name), sizes.head_size, sizes.dtype)
        seconds = timer.seconds(lambda coding=coding: gather_rows(k, v, rows, coding))
        moved = int(counts.sum()) * (sizes.row_bytes + coding.row_bytes)
        share = moved / seconds / ceilings.copy_bytes
        figure = "compact_bandwidth_ratio" + ("" if name == "model" else f"_{name}")
        figures[figure] = Figure(share, "ratio", "copy bandwidth", target)
    return figures

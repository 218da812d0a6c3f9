"""The gather of kept rows against the copy bandwidth."""

from __future__ import annotations

import torch

from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.figures import Figure
from benchmarks.gpu.head_lengths import head_lengths
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.timing import Timer
from kvstore.kernels.compact.kernel import gather_rows

_KEPT_RATIO = 0.25


def measure(sizes: Sizes, timer: Timer, ceilings: Ceilings) -> dict[str, Figure]:
    """One layer of a long prompt, heads of very different sizes."""
    tokens, here = sizes.prompt_tokens, timer.device
    counts = head_lengths(sizes.kv_heads, _KEPT_RATIO * tokens, most=tokens)
    rows = [torch.randperm(tokens, device=here)[:count].sort().values for count in counts.tolist()]
    size = (2, sizes.kv_heads, tokens, sizes.head_size)
    k, v = torch.randn(size, device=here, dtype=sizes.dtype)
    seconds = timer.seconds(lambda: gather_rows(k, v, rows))
    moved = 2 * int(counts.sum()) * sizes.row_bytes
    share = moved / seconds / ceilings.copy_bytes
    return {"compact_bandwidth_ratio": Figure(share, "ratio", "copy bandwidth", 0.8)}

"""The shapes that are measured: Llama-3-8B's, and toys on which the scripts are tried anywhere."""

from __future__ import annotations

import dataclasses

import torch


@dataclasses.dataclass(frozen=True, slots=True)
class Sizes:
    """One model shape and load. `context` is what a dense cache would hold per sequence."""

    sequences: int
    layers: int
    kv_heads: int
    group: int
    head_size: int
    page_rows: int
    context: int
    mean_rows: int
    prompt_tokens: int
    sampled_rows: int
    copy_bytes: int
    matrix_rows: int
    flush_bytes: int
    repeats: int
    hidden: int
    intermediate: int
    vocabulary: int
    # of a lone sequence's heads: where partial results are few, and where they are many
    lone_rows: tuple[int, int] = (4096, 131_072)
    # layers that are measured together, since one alone pays for what a step does once
    measured_layers: int = 8
    dtype: torch.dtype = torch.bfloat16

    @property
    def query_heads(self) -> int:
        return self.kv_heads * self.group

    @property
    def row_bytes(self) -> int:
        """Bytes of a key and its value."""
        return 2 * self.head_size * self.dtype.itemsize


LLAMA_3_8B = Sizes(
    sequences=64,
    layers=32,
    kv_heads=8,
    group=4,
    head_size=128,
    page_rows=64,
    context=8192,
    mean_rows=4096,
    prompt_tokens=32_768,
    sampled_rows=1024,
    copy_bytes=4 << 30,
    matrix_rows=8192,
    # more than any second-level cache, and long enough to read for the host to get ahead
    flush_bytes=2 << 30,
    repeats=30,
    hidden=4096,
    intermediate=14_336,
    vocabulary=128_256,
)

TINY = Sizes(
    sequences=2,
    layers=2,
    kv_heads=2,
    group=2,
    head_size=16,
    page_rows=16,
    context=32,
    mean_rows=16,
    prompt_tokens=48,
    sampled_rows=16,
    copy_bytes=1 << 16,
    matrix_rows=32,
    flush_bytes=1 << 10,
    repeats=1,
    hidden=64,
    intermediate=64,
    vocabulary=64,
    lone_rows=(16, 64),
    measured_layers=2,
)

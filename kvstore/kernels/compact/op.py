"""Gathers the kept rows of a layer's heads into one ragged tensor, coded."""

from __future__ import annotations

import torch

from kvstore.kernels.compact import reference
from kvstore.kernels.dispatch import runs_triton
from kvstore.row_codecs import KeyValueLayout


def gather_rows(
    k: torch.Tensor, v: torch.Tensor, rows: torch.Tensor, ends: torch.Tensor, layout: KeyValueLayout
) -> tuple[torch.Tensor, torch.Tensor]:
    """`rows` int32 `[R]` of `k` and `v`, heads one after another: two new `[R, width]`.

    Those of head h end before `ends[h]`, int32 `[H]`; a head may keep no row at all. `k`, `v`
    `[H, T, D]` of any strides. Rows are coded as `encode_rows` says; what a kernel rotates may
    differ from it in the last bit before encoding.
    """
    assert len(ends) == k.shape[0], "where each KV head's rows end"
    if runs_triton(k):
        # imported where it can run: Triton is not there on every machine
        from kvstore.kernels.compact import kernel

        return kernel.gather_rows(k, v, rows, ends, layout)
    return reference.gather_rows(k, v, rows, ends, layout)

"""Gathers the kept rows of a layer's heads into one ragged tensor, coded."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvstore.codecs import RowCoding
from kvstore.kernels.compact import reference
from kvstore.kernels.dispatch import runs_triton


def gather_rows(
    k: torch.Tensor, v: torch.Tensor, rows: Sequence[torch.Tensor], coding: RowCoding
) -> tuple[torch.Tensor, torch.Tensor]:
    """`rows[h]` int64 `[R_h]` of `k[h]` and `v[h]`, heads one after another: two new `[R, width]`.

    `k`, `v` `[H, T, D]` of any strides; a head may keep no row at all. Rows are coded as
    `encode_rows` says; what a kernel rotates may differ from it in the last bit before coding.
    """
    assert len(rows) == k.shape[0], "a list of rows per KV head"
    if runs_triton(k):
        # imported where it can run: Triton is not there on every machine
        from kvstore.kernels.compact import kernel

        return kernel.gather_rows(k, v, rows, coding)
    return reference.gather_rows(k, v, rows, coding)

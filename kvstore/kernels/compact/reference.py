"""The gather in plain torch: one index_select per head, straight into place; then the coding."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvstore.codecs import RowCoding, encode_rows


def gather_rows(
    k: torch.Tensor, v: torch.Tensor, rows: Sequence[torch.Tensor], coding: RowCoding
) -> tuple[torch.Tensor, torch.Tensor]:
    """See op.py."""
    total = sum(chosen.numel() for chosen in rows)
    keys, values = k.new_empty(total, k.shape[2]), v.new_empty(total, v.shape[2])
    first = 0
    for head, chosen in enumerate(rows):
        last = first + chosen.numel()
        torch.index_select(k[head], 0, chosen, out=keys[first:last])
        torch.index_select(v[head], 0, chosen, out=values[first:last])
        first = last
    return encode_rows(keys, coding.keys), encode_rows(values, coding.values)

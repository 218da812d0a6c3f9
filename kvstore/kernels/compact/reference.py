"""The gather in plain torch: one index_select per head, straight into place; then the encoding."""

from __future__ import annotations

import torch

from kvstore.row_codecs import KeyValueLayout, encode_rows


def gather_rows(
    k: torch.Tensor, v: torch.Tensor, rows: torch.Tensor, ends: torch.Tensor, layout: KeyValueLayout
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gather rows as op.py defines."""
    keys, values = k.new_empty(len(rows), k.shape[2]), v.new_empty(len(rows), v.shape[2])
    first = 0
    for head, last in enumerate(ends.tolist()):
        torch.index_select(k[head], 0, rows[first:last], out=keys[first:last])
        torch.index_select(v[head], 0, rows[first:last], out=values[first:last])
        first = last
    return encode_rows(keys, layout.keys), encode_rows(values, layout.values)

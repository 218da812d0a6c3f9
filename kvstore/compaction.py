"""Compacts a layer: from dense keys and values and a plan to ragged rows of their own."""

from __future__ import annotations

import itertools

import torch

from kvstore.cache import RaggedLayer
from kvstore.kernels.compact.op import gather_rows
from kvstore.kernels.device_copies import to_device
from kvstore.plans import LayerPlan
from kvstore.row_codecs import MODEL_ROWS, KeyValueLayout, RowCodec, encode_rows


def compact_layer(
    k: torch.Tensor,
    v: torch.Tensor,
    plan: LayerPlan,
    classes: torch.Tensor,
    codec: RowCodec = MODEL_ROWS,
) -> RaggedLayer:
    """Gather what `plan` keeps of `k`, `v` `[H, T, D]`, and code it; `classes` uint8 `[T]`.

    The layer owns its memory: `k` and `v` can be freed. Scores and flags are stored only for the
    heads whose rule needs them.
    """
    heads = plan.heads
    rows = [to_device(head.rows, k.device) for head in heads]
    offsets = [0, *itertools.accumulate(chosen.numel() for chosen in rows)]
    positions = torch.cat(rows).to(torch.int32)
    ends = to_device(torch.tensor(offsets[1:], dtype=torch.int32), k.device)
    layout = KeyValueLayout(codec, k.shape[2], k.dtype)
    keys, values = gather_rows(k, v, positions, ends, layout)
    for head, bounds in zip(heads, itertools.pairwise(offsets), strict=True):
        if head.fitted is not None:
            # as the model's own rows are: in its dtype before they are coded
            own, fitted = slice(*bounds), head.fitted
            values[own] = encode_rows(fitted.values.to(k), layout.values)
            if fitted.keys is not None:
                keys[own] = encode_rows(fitted.keys.to(k), layout.keys)
    classes = to_device(classes, k.device)
    scores = [
        head.scores.to(k.device)[chosen]
        for head, chosen in zip(heads, rows, strict=True)
        if head.rule.needs_scores and head.scores is not None
    ]
    flags = [
        classes[chosen] for head, chosen in zip(heads, rows, strict=True) if head.rule.needs_flags
    ]
    weights = [head.fitted.log_weights for head in heads if head.fitted is not None]
    return RaggedLayer(
        keys=keys,
        values=values,
        positions=positions,
        head_offsets=tuple(offsets),
        rules=tuple(head.rule for head in heads),
        attention_coverage=tuple(head.attention_coverage for head in heads),
        scores=_joined(scores, torch.float32, k.device),
        flags=_joined(flags, torch.uint8, k.device),
        log_weights=_joined(weights, torch.float32, k.device),
        weighted=tuple(head.fitted is not None for head in heads) if weights else (),
        layout=None if layout.unquantized else layout,
    )


def _joined(parts: list[torch.Tensor], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.cat([torch.empty(0, dtype=dtype, device=device), *parts])

"""Attention hooks for a known text: exact, or over a compact prompt and the text itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvstore.attention_input import AttentionInput
from kvstore.cache import RaggedLayer
from kvstore.kernels.prefill_attention.op import prefill_attention


class DenseAttention:
    """An `AttentionHook` without any cache: the whole text at once, exactly."""

    def attend(self, inputs: AttentionInput) -> torch.Tensor:
        q, k, v = inputs.q, inputs.k, inputs.v
        out, _ = prefill_attention(
            q[0], k[0], v[0], scale=inputs.scale, sliding_window=inputs.sliding_window
        )
        return out.transpose(0, 1)[None]


class KeptAttention:
    """An `AttentionHook` of one text after a compact prompt, all of the text kept.

    What the pool's kernels compute for it in one block, in plain torch, so that known text costs a
    product a head.
    """

    def __init__(self, layers: Sequence[RaggedLayer], first_position: int) -> None:
        self._layers = layers
        self._first = first_position

    def attend(self, inputs: AttentionInput) -> torch.Tensor:
        q, k, v = inputs.q, inputs.k, inputs.v
        own = torch.arange(self._first, self._first + q.shape[2], device=q.device)
        group, outputs = q.shape[1] // k.shape[1], []
        for head, coded in enumerate(self._layers[inputs.layer].heads()):
            rows = coded.decoded()
            distance = own[:, None] - torch.cat([rows.positions.long(), own])
            seen = (distance >= 0) & (
                distance < (inputs.sliding_window or self._first + q.shape[2])
            )
            bias = torch.zeros(seen.shape, dtype=q.dtype, device=q.device)
            bias.masked_fill_(~seen, -torch.inf)
            if rows.log_weights is not None:
                bias[:, : rows.rows] += rows.log_weights
            keys, values = torch.cat([rows.keys, k[0, head]]), torch.cat([rows.values, v[0, head]])
            queries = q[0, head * group : (head + 1) * group]
            outputs.append(
                torch.nn.functional.scaled_dot_product_attention(
                    queries,
                    keys.expand(group, -1, -1),
                    values.expand(group, -1, -1),
                    attn_mask=bias,
                    scale=inputs.scale,
                )
            )
        return torch.cat(outputs).transpose(0, 1)[None]

"""The main direction of each head's queries, by which keys are scored without any query.

Source: Godey et al., Q-Filters (arXiv 2503.02812). Queries of real text are gathered after RoPE,
and the first right singular vector of each query head's is taken, its sign such that queries
project on it positively. The filters of a group are averaged.
"""

from __future__ import annotations

import torch

from kvstore.attention_input import AttentionInput
from kvstore.kernels.prefill_attention.op import prefill_attention
from services.prefill.calibration.texts import spread_texts
from services.runtime.model.forward_pass import forward
from services.runtime.model.served_model import ServedModel

# the paper takes 3,000 queries a head from 20 texts of 2,048 tokens. Here 4 texts are enough for a
# singular vector of 64 to 128 entries, and the model reads them in seconds
_TEXTS = 4
_TEXT_TOKENS = 2048
_QUERIES = 3000


def measure_filters(
    served: ServedModel, text_tokens: int = _TEXT_TOKENS
) -> tuple[torch.Tensor, ...]:
    """Return filters f32 `[H, D]` per layer, measured on Python's documentation."""
    hook = _QueryMoments(len(served.shapes), _QUERIES // _TEXTS)
    for text in spread_texts(served, _TEXTS, text_tokens):
        positions = torch.arange(len(text), device=text.device)
        forward(served, text[None], positions[None], hook, logits=False)
    return tuple(
        _filters(moments, mean, shape.kv_heads)
        for moments, mean, shape in zip(hook.moments, hook.sums, served.shapes, strict=True)
    )


class _QueryMoments:
    """An `AttentionHook` that sums evenly strided queries and their products per layer and head.

    The first singular vector follows from `moments` `[HQ, D, D]`, its sign from `sums` `[HQ, D]`,
    both f64.
    """

    def __init__(self, layers: int, queries: int) -> None:
        self.moments: list[torch.Tensor] = [torch.zeros(())] * layers
        self.sums: list[torch.Tensor] = [torch.zeros(())] * layers
        self._queries = queries

    def attend(self, inputs: AttentionInput) -> torch.Tensor:
        q, k, v = inputs.q, inputs.k, inputs.v
        chosen = q[0, :, :: max(1, q.shape[2] // self._queries)].double()
        self.moments[inputs.layer] = self.moments[inputs.layer] + (chosen.mT @ chosen).cpu()
        self.sums[inputs.layer] = self.sums[inputs.layer] + chosen.sum(1).cpu()
        out, _ = prefill_attention(
            q[0], k[0], v[0], scale=inputs.scale, sliding_window=inputs.sliding_window
        )
        return out.transpose(0, 1)[None]


def _filters(moments: torch.Tensor, sums: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Return `[H, D]`: the products' eigenvectors are the queries' right singular vectors."""
    first: torch.Tensor = torch.linalg.eigh(moments).eigenvectors[:, :, -1]
    first = first * torch.where((first * sums).sum(-1, keepdim=True) < 0, -1.0, 1.0)
    return first.view(kv_heads, -1, first.shape[1]).mean(1).float()

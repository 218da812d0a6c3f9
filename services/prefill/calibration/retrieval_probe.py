"""A probe for retrieval heads: their attention to earlier copies of repeated random tokens.

Source: Tang et al., RazorAttention (arXiv 2407.15891). No text is needed: in random
tokens the repetition is the only pattern.
"""

from __future__ import annotations

import torch

from kvstore.attention_input import AttentionInput
from kvstore.calibration import RetrievalScores
from kvstore.kernels.prefill_attention.op import prefill_attention
from services.runtime.model.forward_pass import forward
from services.runtime.model.served_model import ServedModel

# as in the paper; in a shorter context every copy is shorter
_COPIES = 4
_COPY_TOKENS = 2500
_SEED = 0


def probe_retrieval(served: ServedModel, copy_tokens: int = _COPY_TOKENS) -> RetrievalScores:
    """Run the probe, with at most a quarter of the context and one vocabulary per copy."""
    tokens = min(copy_tokens, served.context_tokens // _COPIES, served.vocabulary_size)
    generator = torch.Generator().manual_seed(_SEED)
    copy = torch.randperm(served.vocabulary_size, generator=generator)[:tokens]
    ids = copy.repeat(_COPIES).to(served.model.device)
    hook = _CopyAttention(tokens)
    positions = torch.arange(len(ids), device=ids.device)
    forward(served, ids[None], positions[None], hook, logits=False)
    return RetrievalScores(tuple(hook.induction), tuple(hook.echo))


class _CopyAttention:
    """An `AttentionHook` that records per layer the attention paid to earlier copies."""

    def __init__(self, copy_tokens: int) -> None:
        self.induction: list[torch.Tensor] = []
        self.echo: list[torch.Tensor] = []
        self._copy_tokens = copy_tokens

    def attend(self, inputs: AttentionInput) -> torch.Tensor:
        q, k, v = inputs.q, inputs.k, inputs.v
        out, lse = prefill_attention(
            q[0], k[0], v[0], scale=inputs.scale, sliding_window=inputs.sliding_window
        )
        for offset, scores in ((0, self.echo), (1, self.induction)):
            paid = _paid_to_copies(
                q[0], k[0], lse, self._copy_tokens, offset, inputs.scale, inputs.sliding_window
            )
            scores.append(paid.view(k.shape[1], -1).amax(1).cpu())
        return out.transpose(0, 1)[None]


def _paid_to_copies(
    q: torch.Tensor,
    k: torch.Tensor,
    lse: torch.Tensor,
    copy_tokens: int,
    offset: int,
    scale: float,
    sliding_window: int | None,
) -> torch.Tensor:
    """Mean attention `[HQ]` of queries to the token `offset` after their earlier copies."""
    length, keys = q.shape[1], k.repeat_interleave(q.shape[0] // k.shape[0], 0)
    paid = torch.zeros(q.shape[0], device=q.device)
    for distance in range(copy_tokens, length, copy_tokens):
        back = distance - offset
        if sliding_window is not None and back >= sliding_window:
            continue
        # the queries whose copy lies `distance` back
        logits = (q[:, distance:].float() * keys[:, offset : length - back].float()).sum(-1)
        paid += (logits * scale - lse[:, distance:]).exp().sum(1)
    return paid / (length - copy_tokens)

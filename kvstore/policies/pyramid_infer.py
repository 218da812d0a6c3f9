"""PyramidInfer: SnapKV's votes by the latest fifth of the prompt, budgets along a cosine.

Source: Yang et al., PyramidInfer: Pyramid KV Cache Compression for High-throughput LLM Inference
(arXiv 2405.12532). The paper drops tokens from the hidden states, so that deeper layers never
compute them; here the prompt's forward pass is exact, every layer chooses among all tokens, and
only its budgets are taken over: they fall with depth like (1 − r)(cos(π l / L) + 1) / 2 + r with
r = .9, each layer's a share of the one before, scaled so that the mean is the budget. The paper
weighs its voters from 1 to 1.2 toward the newest; here they count the same, and heads choose for
themselves.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import torch

from kvstore.cache import LayerShape
from kvstore.plans import LayerFacts, ProfileRequest, PromptFacts
from kvstore.policies.layer_budgets import spread_rows
from kvstore.policies.parameters import ratio
from kvstore.policies.snapkv import SnapKV
from kvstore.rules import share_of


@dataclasses.dataclass(frozen=True, slots=True)
class PyramidInfer(SnapKV):
    """`recent_ratio` of the prompt votes, `window` of it stays; `decay` is r."""

    name: ClassVar[str] = "pyramid_infer"

    recent_ratio: float = ratio(0.2)
    decay: float = ratio(0.9)

    def profile_request(self, tokens: int, shape: LayerShape) -> ProfileRequest | None:
        if self.keeps_everything():
            return None
        return ProfileRequest(recent_rows=max(self.window, share_of(self.recent_ratio, tokens)))

    def counts(self, scores: torch.Tensor, prompt: PromptFacts, layer: LayerFacts) -> Sequence[int]:
        shares = cosine_shares(self.decay, len(layer.cache.shapes))
        rows = spread_rows(self, shares, prompt, layer.cache)[layer.index]
        return [rows] * layer.shape.kv_heads


def cosine_shares(decay: float, layers: int) -> list[float]:
    """Each layer's share of the prompt as the paper's schedule leaves it, before scaling."""
    shares, share = [], 1.0
    for index in range(layers):
        share *= (1 - decay) * (math.cos(math.pi * index / layers) + 1) / 2 + decay
        shares.append(share)
    return shares

"""PyramidKV: SnapKV with budgets that fall from layer to layer.

Source: Cai et al., PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information
Funneling (arXiv 2406.02069). The votes are SnapKV's. The last layer gets 1/beta of the mean
budget, the first what makes the mean come out, and between them budgets fall evenly; beta is 20.
What a layer's prompt is too short for goes to the others in proportion.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch

from kvstore.plans import LayerFacts, PromptFacts
from kvstore.policies.layer_budgets import spread_rows
from kvstore.policies.parameters import tokens
from kvstore.policies.snapkv import SnapKV


@dataclasses.dataclass(frozen=True, slots=True)
class PyramidKV(SnapKV):
    """`beta`: by what factor the last layer's budget is below the mean."""

    name: ClassVar[str] = "pyramidkv"

    beta: int = tokens(20, least=1)

    def counts(self, scores: torch.Tensor, prompt: PromptFacts, layer: LayerFacts) -> Sequence[int]:
        shares = falling_shares(self.beta, len(layer.cache.shapes))
        rows = spread_rows(self, shares, prompt, layer.cache)[layer.index]
        return [rows] * layer.shape.kv_heads


def falling_shares(beta: int, layers: int) -> list[float]:
    """Return shares that fall linearly to `1 / beta`, with mean 1."""
    if layers == 1:
        return [1.0]
    return [2 - 1 / beta - index / (layers - 1) * 2 * (1 - 1 / beta) for index in range(layers)]

"""PyramidKV: SnapKV with budgets that fall from layer to layer.

Source: Cai et al., PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information
Funneling (arXiv 2406.02069). The votes are SnapKV's. The last layer gets 1/beta of the mean
budget, the first what makes the mean come out, and between them budgets fall evenly; beta is 20.
Where the first layer's part would exceed the prompt, the slope is what just fits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch

from kvstore.plans import LayerFacts, PromptFacts
from kvstore.policies.budget import visible_rows
from kvstore.policies.parameters import tokens
from kvstore.policies.snapkv import SnapKV


@dataclasses.dataclass(frozen=True, slots=True)
class PyramidKV(SnapKV):
    """`beta`: by what factor the last layer's budget is below the mean."""

    name: ClassVar[str] = "pyramidkv"

    beta: int = tokens(20, least=1)

    def counts(self, scores: torch.Tensor, prompt: PromptFacts, layer: LayerFacts) -> Sequence[int]:
        mean, visible = self.rows(prompt, layer), visible_rows(prompt, layer.shape)
        rows = falling_rows(mean, visible, self.beta, layer.index, len(layer.cache.shapes))
        return [max(min(self.floor_rows, visible), rows)] * layer.shape.kv_heads


def falling_rows(mean: int, most: int, beta: int, layer: int, layers: int) -> int:
    """The rows of one layer on a straight line through the mean, none above `most`."""
    least = max(mean / beta, 2 * mean - most)
    depth = layer / (layers - 1) if layers > 1 else 0.5
    return round(2 * mean - least - depth * 2 * (mean - least))

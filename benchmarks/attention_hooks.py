"""How a known text attends: exactly, to a compact prompt, or as decoding does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from kvstore.cache import RaggedLayer
from kvstore.kernels.prefill_attention.op import prefill_attention
from kvstore.kernels.ragged_attention import ragged_attention
from kvstore.pool import SequencePages


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Fed:
    """One sequence's block in one layer, until its pages take it in."""

    pages: SequencePages
    layer: int
    keys: torch.Tensor
    values: torch.Tensor
    received: tuple[torch.Tensor | None, ...]


class DenseAttention:
    """An `AttentionHook` without any cache: the whole text at once, exactly."""

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float,
        sliding_window: int | None,
    ) -> torch.Tensor:
        out, _ = prefill_attention(q[0], k[0], v[0], scale=scale, sliding_window=sliding_window)
        return out.transpose(0, 1)[None]


class RaggedAttention:
    """An `AttentionHook` over a prompt's compact layers; nothing that was fed is ever dropped."""

    def __init__(self, layers: Sequence[RaggedLayer], first_position: int) -> None:
        self._layers = layers
        self._first_position = first_position

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float,
        sliding_window: int | None,
    ) -> torch.Tensor:
        step = ragged_attention(
            q[0],
            tuple(self._layers[layer].heads()),
            k[0],
            v[0],
            self._first_position,
            scale=scale,
            sliding_window=sliding_window,
        )
        return step.out.transpose(0, 1)[None]


class RetainingAttention:
    """An `AttentionHook` for B sequences in pages that are all fed the same block.

    Fed rows reach the pages with `retain`, which applies every head's rule as decoding does.
    """

    def __init__(self, batch: Sequence[SequencePages]) -> None:
        self._batch = batch
        self._fed: list[_Fed] = []

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float,
        sliding_window: int | None,
    ) -> torch.Tensor:
        out = torch.empty_like(q)
        for row, pages in enumerate(self._batch):
            step = ragged_attention(
                q[row],
                pages.heads(layer),
                k[row],
                v[row],
                pages.length,
                scale=scale,
                sliding_window=sliding_window,
            )
            out[row] = step.out
            self._fed.append(_Fed(pages, layer, k[row], v[row], step.received))
        return out.transpose(1, 2)

    def retain(self, first_position: int, classes: torch.Tensor) -> None:
        """Apply the rules at the block's end; `classes` uint8 `[m]`, the fed tokens'."""
        for fed in self._fed:
            fed.pages.retain(fed.layer, fed.keys, fed.values, first_position, classes, fed.received)

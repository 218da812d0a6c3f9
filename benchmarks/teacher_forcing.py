"""A known continuation fed onto a compact cache, and how far its predictions are from exact."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch

from kvstore.cache import RaggedLayer
from kvstore.kernels.prefill_attention.op import prefill_attention
from kvstore.kernels.ragged_attention import ragged_attention
from kvstore.pool import PagePool, SequencePages, pages_bound
from services.runtime.attention import AttentionHook
from services.runtime.model import ServedModel

_PAGE_ROWS = 16


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


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Divergence:
    """Per predicted token, f64 `[n]`, natural logarithms.

    `kl` KL(full‖compact), `loss` the negative log-likelihood of the token that came, `agreed` 1
    where both put the same token first.
    """

    kl: torch.Tensor
    loss: torch.Tensor
    agreed: torch.Tensor

    @property
    def perplexity(self) -> float:
        return math.exp(float(self.loss.mean()))


def dense_logits(served: ServedModel, prompt: Sequence[int], fed: Sequence[int]) -> torch.Tensor:
    """Exact logits `[m, V]` after each of the m fed tokens."""
    return _logits(served, [(*prompt, *fed)], 0, DenseAttention(), keep=len(fed))[0]


def kept_logits(
    served: ServedModel, layers: Sequence[RaggedLayer], first_position: int, fed: Sequence[int]
) -> torch.Tensor:
    """Logits `[m, V]` over the compact prompt, with all m fed tokens kept."""
    hook = RaggedAttention(layers, first_position)
    return _logits(served, [fed], first_position, hook, keep=len(fed))[0]


def open_pages(
    served: ServedModel, layers: Sequence[RaggedLayer], first_position: int, more_tokens: int
) -> SequencePages:
    """Pages that hold the compact prompt, with room for `more_tokens`."""
    pages = pages_bound(served.shapes, first_position + more_tokens, _PAGE_ROWS)
    pool = PagePool(pages, _PAGE_ROWS, served.shapes[0].head_size, served.dtype)
    sequence = SequencePages(pool.reserve(pages), served.shapes, first_position)
    for index, layer in enumerate(layers):
        sequence.load(index, layer)
    return sequence


def feed(served: ServedModel, batch: Sequence[SequencePages], block: Sequence[int]) -> torch.Tensor:
    """Feed all B sequences one block and apply the rules at its end; returns logits `[B, V]`."""
    first = batch[0].length
    assert all(pages.length == first for pages in batch), "one position for the whole batch"
    hook = RetainingAttention(batch)
    logits = _logits(served, [block] * len(batch), first, hook, keep=1)
    hook.retain(first, served.tokenizer.classify(block))
    return logits[:, 0]


def compare(exact: torch.Tensor, measured: torch.Tensor, targets: Sequence[int]) -> Divergence:
    """`exact` and `measured` logits `[n, V]` against each other and the n tokens that came."""
    ours, theirs = measured.log_softmax(-1), exact.log_softmax(-1)
    kl = (theirs.exp() * (theirs - ours)).sum(-1, dtype=torch.float64)
    loss = -ours.gather(1, torch.tensor(targets, device=ours.device)[:, None])[:, 0].double()
    agreed = (exact.argmax(-1) == measured.argmax(-1)).double()
    return Divergence(kl, loss, agreed)


def join(parts: Sequence[Divergence]) -> Divergence:
    """Several passages as one; every token counts the same."""
    return Divergence(
        torch.cat([part.kl for part in parts]),
        torch.cat([part.loss for part in parts]),
        torch.cat([part.agreed for part in parts]),
    )


def _logits(
    served: ServedModel,
    batch: Sequence[Sequence[int]],
    first: int,
    hook: AttentionHook,
    keep: int,
) -> torch.Tensor:
    """Logits `[B, keep, V]` after the last `keep` of each sequence's tokens."""
    ids = torch.tensor(batch, device=served.model.device)
    positions = torch.arange(first, first + ids.shape[1], device=ids.device).expand_as(ids)
    with torch.inference_mode():
        logits: torch.Tensor = served.model(
            input_ids=ids,
            position_ids=positions,
            use_cache=False,
            logits_to_keep=keep,
            headwise=hook,
            headwise_shapes=served.shapes,
        ).logits
    return logits

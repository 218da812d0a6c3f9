"""A known continuation fed onto a compact cache, and how far its predictions are from exact."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch

from kvstore.cache import RaggedLayer
from kvstore.pool import BatchStep, PagePool, SequencePages, pages_bound
from kvstore.row_codecs import MODEL_ROWS
from services.decode.engine.step import BatchAttention
from services.evaluation.attention_hooks import DenseAttention, KeptAttention
from services.runtime.model.attention import AttentionHook
from services.runtime.model.forward_pass import forward
from services.runtime.model.served_model import ServedModel

_PAGE_ROWS = 16


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Divergence:
    """Divergence per predicted token, f64 `[n]`, natural logarithms.

    `kl` KL(full‖compact), `loss` the negative log-likelihood of the token that came, `agreed` 1
    where both put the same token first.
    """

    kl: torch.Tensor
    loss: torch.Tensor
    agreed: torch.Tensor

    @property
    def perplexity(self) -> float:
        return math.exp(float(self.loss.mean()))


def dense_logits(
    served: ServedModel, prompt: Sequence[int], continuation: Sequence[int]
) -> torch.Tensor:
    """Exact logits `[m, V]` after each of the m fed tokens."""
    return _logits(served, [(*prompt, *continuation)], 0, DenseAttention(), keep=len(continuation))[
        0
    ]


def kept_logits(
    served: ServedModel,
    layers: Sequence[RaggedLayer],
    first_position: int,
    continuation: Sequence[int],
) -> torch.Tensor:
    """Logits `[m, V]` over the compact prompt, with all m fed tokens kept."""
    hook = KeptAttention(layers, first_position)
    return _logits(served, [continuation], first_position, hook, keep=len(continuation))[0]


def open_pages(
    served: ServedModel,
    caches: Sequence[Sequence[RaggedLayer]],
    first_position: int,
    more_tokens: int,
    forks: int = 0,
) -> list[SequencePages]:
    """Pages of one pool that hold these compact prompts, each with room for `more_tokens`.

    So many `forks` may be open at once beside them, and as long as they (`open_fork`).
    """
    bound = pages_bound(served.shapes, first_position + more_tokens, _PAGE_ROWS)
    pages = bound.rows * (len(caches) + forks)
    pool = PagePool(
        served.shapes,
        pages=pages,
        page_rows=_PAGE_ROWS,
        dtype=served.dtype,
        device=served.model.device,
    )
    batch = []
    for layers in caches:
        layout = layers[0].layout
        codec = layout.codec if layout else MODEL_ROWS
        # coded rows need fewer pages than the bound
        sequence = pool.open(first_position, bound, codec)
        for index, layer in enumerate(layers):
            sequence.load(index, layer)
        batch.append(sequence)
    return batch


def open_fork(pages: SequencePages, more_tokens: int) -> SequencePages:
    """Another sequence in the same state, with room for `more_tokens`."""
    fork = pages.fork()
    bound = pages_bound(pages.shapes, pages.length + more_tokens, _PAGE_ROWS)
    # its marks are its own already, its rows are shared until it writes
    own = fork.reservation.used.metadata
    fork.reservation.ensure(dataclasses.replace(bound, metadata=bound.metadata - own))
    return fork


def feed(served: ServedModel, batch: Sequence[SequencePages], block: Sequence[int]) -> torch.Tensor:
    """Feed all B sequences one block and apply the rules at its end; returns logits `[B, V]`."""
    first, size = batch[0].length, len(block)
    assert all(pages.length == first for pages in batch), "one position for the whole batch"
    step = _whole_block(served, batch, block)
    device = served.model.device
    ids = torch.tensor(block, device=device).repeat(len(batch))[None]
    positions = torch.arange(first, first + size, device=device).repeat(len(batch))[None]
    ends = torch.arange(size - 1, size * len(batch), size, device=device)
    logits = forward(served, ids, positions, BatchAttention(step), logits=True, at=ends)
    assert logits is not None
    step.retain()
    return logits


def _whole_block(
    served: ServedModel, batch: Sequence[SequencePages], block: Sequence[int]
) -> BatchStep:
    classes = served.tokenizer.classify(block).numpy()[None].repeat(len(batch), 0)
    return BatchStep.whole(batch, classes, batch[0].pool.new_staged_rows(classes.size))


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

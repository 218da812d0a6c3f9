"""Ragged attention in plain torch, one KV head after another."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvstore.cache import HeadRows


def attend(
    q: torch.Tensor,
    heads: Sequence[HeadRows],
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    first_position: int,
    scale: float,
    sliding_window: int | None,
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """Out `[HQ, m, D]` and what each head's rows received; shapes as in the contract."""
    query_heads, fed, size = q.shape
    group = query_heads // len(heads)
    # the G query heads of a KV head are one matrix: each key row is read once for all of them
    queries = (q.float() * scale).reshape(len(heads), group * fed, size)
    out = torch.empty_like(queries)
    received: list[torch.Tensor | None] = []
    for number, head in enumerate(heads):
        probabilities = _probabilities(
            queries[number], head, new_keys[number].float(), first_position, sliding_window
        )
        torch.mm(probabilities[:, head.rows :], new_values[number].float(), out=out[number])
        if head.rows:
            out[number].addmm_(probabilities[:, : head.rows], head.values.float())
        scored = head.rule.needs_scores
        received.append(probabilities.sum(0).div_(group) if scored else None)
    return out.reshape(query_heads, fed, size).to(q.dtype), received


def _probabilities(
    queries: torch.Tensor,
    head: HeadRows,
    new_keys: torch.Tensor,
    first_position: int,
    sliding_window: int | None,
) -> torch.Tensor:
    """Softmax over a head's held rows and the block's own, f32 `[G · m, R + m]`."""
    fed, rows = new_keys.shape[0], head.rows
    # the two products share one buffer, so that the keys themselves are never joined
    logits = queries.new_empty(queries.shape[0], rows + fed)
    if rows:
        torch.mm(queries, head.keys.float().t(), out=logits[:, :rows])
    torch.mm(queries, new_keys.t(), out=logits[:, rows:])
    by_query = logits.view(-1, fed, rows + fed)
    if fed > 1:
        by_query[:, :, rows:].masked_fill_(_later(fed, logits.device), -torch.inf)
    if sliding_window is not None:
        hidden = _too_far(head.positions, first_position, fed, sliding_window)
        by_query.masked_fill_(hidden, -torch.inf)
    return logits.softmax(-1)


def _later(fed: int, device: torch.device) -> torch.Tensor:
    """Which of the block's rows lie after each of its queries, bool `[m, m]`."""
    return torch.ones(fed, fed, dtype=torch.bool, device=device).triu_(1)


def _too_far(
    positions: torch.Tensor, first_position: int, fed: int, sliding_window: int
) -> torch.Tensor:
    """Which rows lie outside each query's window, bool `[m, R + m]`."""
    own = torch.arange(
        first_position, first_position + fed, dtype=positions.dtype, device=positions.device
    )
    return own[:, None] - torch.cat((positions, own)) >= sliding_window

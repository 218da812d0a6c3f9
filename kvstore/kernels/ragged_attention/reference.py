"""Ragged attention in plain torch, one sequence and KV head after another."""

from __future__ import annotations

import itertools

import torch

from kvstore.kernels.paged_batch import FedRows, PagedBatch, StepScratch


def attend(
    q: torch.Tensor,
    fed: FedRows,
    batch: PagedBatch,
    layer: int,
    scratch: StepScratch,
    scale: float,
    sliding_window: int | None,
) -> torch.Tensor:
    """See op.py."""
    sequences, query_heads, block, size = q.shape
    heads = int(batch.kv_heads[layer])
    group = query_heads // heads
    # the G query heads of a KV head are one matrix: each key row is read once for all of them
    queries = (q.float() * scale).reshape(sequences, heads, group * block, size)
    out = torch.empty_like(queries)
    for sequence, head in itertools.product(range(sequences), range(heads)):
        place, at = (sequence, layer, head), (sequence, head)
        held = batch.flat_rows(*place, int(batch.rows[place]))
        probabilities = _probabilities(
            queries[at],
            batch.keys[held].float(),
            batch.positions[held],
            fed.keys[place].float(),
            int(batch.lengths[sequence]),
            sliding_window,
        )
        values = torch.cat((batch.values[held].float(), fed.values[place].float()))
        torch.mm(probabilities, values, out=out[at])
        if scratch.scored[place]:
            start, rows = scratch.starts[place], len(values)
            received = probabilities.sum(0).div_(group)
            scratch.received[start : start + rows] = received.cpu().numpy()
    return out.reshape(q.shape).to(q.dtype)


def _probabilities(
    queries: torch.Tensor,
    keys: torch.Tensor,
    positions: torch.Tensor,
    new_keys: torch.Tensor,
    first_position: int,
    sliding_window: int | None,
) -> torch.Tensor:
    """Softmax over a head's R held rows and the m new ones, f32 `[G · m, R + m]`."""
    fed, rows = new_keys.shape[0], keys.shape[0]
    # the two products share one buffer, so that the keys need not be joined
    logits = queries.new_empty(queries.shape[0], rows + fed)
    torch.mm(queries, keys.t(), out=logits[:, :rows])
    torch.mm(queries, new_keys.t(), out=logits[:, rows:])
    by_query = logits.view(-1, fed, rows + fed)
    if fed > 1:
        by_query[:, :, rows:].masked_fill_(_later(fed, logits.device), -torch.inf)
    if sliding_window is not None:
        hidden = _too_far(positions, first_position, fed, sliding_window)
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

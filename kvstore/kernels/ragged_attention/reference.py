"""Ragged attention in plain torch, one sequence and KV head after another."""

from __future__ import annotations

import torch

from kvstore.kernels.paged_batch import PagedBatch
from kvstore.kernels.step_scratch import StepScratch


def attend(
    q: torch.Tensor,
    batch: PagedBatch,
    layer: int,
    scratch: StepScratch,
    scale: float,
    sliding_window: int | None,
) -> torch.Tensor:
    """Compute op.py's attention in plain torch."""
    heads, size = int(batch.tables.kv_heads[layer]), q.shape[-1]
    out = torch.empty_like(q)
    for b, first in enumerate(batch.query_starts.tolist()):
        tokens = slice(first, first + int(batch.counts[b]))
        # [H, G, n, D]: the G query heads of a KV head are one matrix, so a key row is read once
        scaled = q[tokens].float().mul(scale)
        queries = scaled.reshape(len(scaled), heads, -1, size).permute(1, 2, 0, 3)
        for head in range(heads):
            mixed = _attend_head(queries[head], batch, (b, layer, head), scratch, sliding_window)
            group = queries.shape[1]
            out[tokens, head * group : (head + 1) * group] = mixed.transpose(0, 1).to(q.dtype)
    return out


def _attend_head(
    queries: torch.Tensor,
    batch: PagedBatch,
    place: tuple[int, int, int],
    scratch: StepScratch,
    sliding_window: int | None,
) -> torch.Tensor:
    """Scaled queries f32 `[G, n, D]` of one head to the mixed values `[G, n, D]`."""
    b, layer, head = place
    group, _, size = queries.shape
    first, block = int(batch.staging_slots[b]), int(batch.chunk_tokens[b])
    own = slice(first, first + block)
    held, staged = batch.held(*place), batch.staged
    logits = _logits(
        queries.reshape(-1, size),
        batch.row_pages.decoded_keys(held),
        staged.keys[layer, head, own].float(),
        log_weights(batch, place),
    )
    _hide(logits.view(group, -1, logits.shape[1]), batch, place, sliding_window)
    probabilities = logits.softmax(-1)
    values = torch.cat(
        (batch.row_pages.decoded_values(held), staged.values[layer, head, own].float())
    )
    if scratch.scored[place]:
        start = scratch.starts[place]
        scratch.row_attention[start : start + len(values)] += probabilities.sum(0).div_(group)
    return (probabilities @ values).view_as(queries)


def _logits(
    queries: torch.Tensor,
    keys: torch.Tensor,
    new_keys: torch.Tensor,
    log_weights: torch.Tensor | None,
) -> torch.Tensor:
    """Products with R held keys and the m of the block, f32 `[G · n, R + m]`."""
    rows, new_tokens = len(keys), len(new_keys)
    # the two products share one buffer, so that the keys need not be joined
    logits = queries.new_empty(len(queries), rows + new_tokens)
    torch.mm(queries, keys.t(), out=logits[:, :rows])
    torch.mm(queries, new_keys.t(), out=logits[:, rows:])
    if log_weights is not None:
        logits[:, :rows] += log_weights
    return logits


def log_weights(batch: PagedBatch, place: tuple[int, int, int]) -> torch.Tensor | None:
    """Return the log-weights of a head's held rows, f32 `[R]`, if it has any."""
    b, layer, head = place
    tables, slot = batch.tables, batch.slots[b]
    if not tables.weighted[slot, layer, head]:
        return None
    slots = torch.arange(int(tables.rows[slot, layer, head])).numpy()
    metadata = batch.columns.flat(tables.metadata[slot, layer, head], slots)
    return batch.columns.log_weights[torch.from_numpy(metadata).to(batch.columns.positions.device)]


def _hide(
    logits: torch.Tensor,
    batch: PagedBatch,
    place: tuple[int, int, int],
    sliding_window: int | None,
) -> None:
    """Mask what each of the n queries must not see, in `[G, n, R + m]`."""
    block, count = int(batch.chunk_tokens[place[0]]), logits.shape[1]
    device = logits.device
    places = torch.arange(block, device=device)
    queries = places[-count:, None]
    if count > 1:
        logits[..., -block:].masked_fill_(places > queries, -torch.inf)
    if sliding_window is not None:
        length = int(batch.tables.lengths[batch.slots[place[0]]])
        positions = torch.cat((batch.positions(*place).long(), places + length))
        far = queries + length - positions >= sliding_window
        logits.masked_fill_(far, -torch.inf)

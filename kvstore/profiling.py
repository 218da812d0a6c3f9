"""Profiles one attention layer while its prompt is prefilled, chunk by chunk."""

from __future__ import annotations

import torch

from kvstore.cache import LayerShape
from kvstore.kernels.column_mass.input import ColumnMassInput
from kvstore.kernels.column_mass.op import column_mass
from kvstore.kernels.device_copies import to_device
from kvstore.plans import AttentionProfile, ProfileRequest, ReferenceAttention

# query rows whose logits are in memory at once, to find densities; on a device, bytes of these
# logits: fewer rows would be thousands of launches of little work
_DENSITY_ROWS = 16
_DENSITY_BYTES = 256 << 20


def sampled_positions(rows: int, tokens: int) -> torch.Tensor:
    """`rows` query positions strided uniformly over the prompt, int64; all of them for 0.

    A sample that favours the last rows is biased by up to .09 of the mass; an even stride errs by
    about .001.
    """
    if rows == 0 or rows >= tokens:
        return torch.arange(tokens)
    # floor((r + 1/2) · tokens / rows)
    return (2 * torch.arange(rows) + 1) * tokens // (2 * rows)


def looked_at(request: ProfileRequest, tokens: int) -> torch.Tensor:
    """The query positions whose attention is looked at, ascending int64."""
    if request.recent_rows:
        return torch.arange(max(0, tokens - request.recent_rows), tokens)
    return sampled_positions(request.rows, tokens)


def late_positions(request: ProfileRequest, tokens: int) -> torch.Tensor:
    """The query positions that are wanted themselves, ascending int64."""
    if not request.late_queries:
        return torch.arange(0)
    late = max(1, round(request.late_share * tokens))
    return tokens - late + sampled_positions(request.late_queries, late)


class Profiler:
    """Accumulates one layer's column mass; how the prompt was cut into chunks changes nothing."""

    def __init__(
        self,
        request: ProfileRequest,
        shape: LayerShape,
        tokens: int,
        device: torch.device | None = None,
    ) -> None:
        self._request = request
        self._shape = shape
        self._tokens = tokens
        self._positions = looked_at(request, tokens)
        self._far = torch.zeros(shape.query_heads, len(request.edges), tokens, device=device)
        self._keys: torch.Tensor | None = None
        self._values: torch.Tensor | None = None
        # a number on the device, which is read when all layers are known
        self._density: float | torch.Tensor = 0.0
        self._late = late_positions(request, tokens)
        self._late_queries: list[torch.Tensor] = []
        self._reference: ReferenceAttention | None = None

    def observe(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        lse: torch.Tensor,
        first_position: int,
        scale: float,
    ) -> None:
        """Take in the chunk of queries `q` `[HQ, m, D]` that begins at `first_position`.

        `k`, `v` `[H, n, D]` are all keys and values up to the chunk's end, `lse` `[HQ, m]` is what
        `prefill_attention` returned.
        """
        if self._request.keys:
            self._keys = k
        if self._request.values:
            self._values = v
        self._take_late(q, k, v, first_position, scale)
        if not self._request.edges:
            return
        bounds = torch.tensor([first_position, first_position + q.shape[1]])
        begin, end = torch.searchsorted(self._positions, bounds).tolist()
        positions = self._positions[begin:end]
        if positions.numel() < q.shape[1]:
            chosen = to_device(positions - first_position, q.device)
            q, lse = q.index_select(1, chosen), lse.index_select(1, chosen)
        if self._request.density_threshold:
            self._add_density(q, k, positions, scale)
        weighted = self._request.value_weighted
        column_mass(
            self._far,
            ColumnMassInput(
                q,
                k,
                lse,
                positions,
                edges=self._request.edges,
                scale=scale,
                sliding_window=self._shape.sliding_window,
                value_norms=torch.linalg.vector_norm(v, dim=-1, dtype=torch.float32)
                if weighted
                else None,
            ),
        )

    def _take_late(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, first_position: int, scale: float
    ) -> None:
        here = (self._late >= first_position) & (self._late < first_position + q.shape[1])
        if here.any():
            chosen = to_device(self._late[here] - first_position, q.device)
            self._late_queries.append(q.index_select(1, chosen))
        if self._late.numel() and k.shape[1] == self._tokens:
            queries = torch.cat(self._late_queries, 1)
            self._reference = ReferenceAttention(queries, self._late, k, v, scale)

    def _add_density(
        self, q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor, scale: float
    ) -> None:
        if not positions.numel():
            return
        densities = _row_densities(
            q,
            k,
            positions,
            threshold=self._request.density_threshold,
            scale=scale,
            sliding_window=self._shape.sliding_window,
        )
        self._density += densities.mean(0).sum().double() / self._positions.numel()

    def profile(self) -> AttentionProfile:
        """Return the profile, scaled from the measured rows to all rows."""
        rows = self._positions.numel()
        sampled = rows < self._tokens and not self._request.recent_rows
        far = self._far * (self._tokens / rows) if sampled else self._far
        shape = (self._shape.kv_heads, self._shape.group, *far.shape[1:])
        return AttentionProfile(
            far.view(shape),
            self._request.edges,
            self._tokens,
            self._tokens if sampled else rows,
            self._keys,
            self._values,
            density=self._density,
            reference=self._reference,
        )


def _row_densities(
    q: torch.Tensor,
    k: torch.Tensor,
    positions: torch.Tensor,
    *,
    threshold: float,
    scale: float,
    sliding_window: int | None,
) -> torch.Tensor:
    """The share of each row's visible columns with `A_ij >= threshold · max_j A_ij`, `[HQ, m]`.

    `q` `[HQ, m, D]` stand at the ascending `positions` int64 `[m]`; `k` `[H, n, D]`. Source:
    VL-Cache (arXiv 2410.23317), whose layer's density is the mean. Probabilities relative to the
    highest need no normalisation.
    """
    keys = k.float().repeat_interleave(q.shape[0] // k.shape[0], 0).mT
    columns = torch.arange(k.shape[1], device=q.device)
    found = []
    positions = to_device(positions, q.device)
    count = _rows_at_once(q, k.shape[1])
    for first in range(0, q.shape[1], count):
        rows = slice(first, first + count)
        distance = positions[rows, None] - columns
        visible = (distance >= 0) & (distance < (sliding_window or k.shape[1] + 1))
        logits = (q[:, rows].float() @ keys * scale).masked_fill(~visible, -torch.inf)
        relative = (logits - logits.amax(-1, keepdim=True)).exp()
        dense = ((relative >= threshold) & visible).sum(-1)
        found.append(dense / visible.sum(-1))
    return torch.cat(found, 1)


def _rows_at_once(q: torch.Tensor, columns: int) -> int:
    if not q.is_cuda:
        return _DENSITY_ROWS
    return max(_DENSITY_ROWS, _DENSITY_BYTES // (q.shape[0] * columns * 4))

"""Values between profile and policy: requests for measurements, facts, and plans."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch

from kvstore.cache import LayerShape
from kvstore.rules import RetentionRule


@dataclasses.dataclass(frozen=True, slots=True)
class ProfileRequest:
    """Measurements that a policy asks for.

    `edges`: ascending distances in tokens, the first 0, at which far mass is measured; empty if
    none is needed.
    `rows`: the number of uniformly strided query rows to measure; 0 means all rows.
    `value_weighted`: weigh each probability by the norm of its value, renormalised per row.
    `recent_rows`: measure only the prompt's last rows, all of them; 0 for no such limit.
    `keys`, `values`: the prompt's keys or values themselves.
    `density_threshold`: what part of a row's highest probability counts as looked at; 0 where no
    density is wanted.
    `reconstruct`: the most that any token of a second pass, which repeats the prompt, pays to each
    column.
    `reference_queries`: that many query rows of that second pass themselves, uniformly strided,
    with the prompt's keys and values.
    `late_queries`: likewise, but of the prompt's own rows, strided over its last `late_share`.
    """

    edges: tuple[int, ...] = (0,)
    rows: int = 0
    value_weighted: bool = False
    recent_rows: int = 0
    keys: bool = False
    values: bool = False
    density_threshold: float = 0.0
    reconstruct: bool = False
    reference_queries: int = 0
    late_queries: int = 0
    late_share: float = 1.0

    @property
    def repeats(self) -> bool:
        """Whether it takes a second pass over the prompt."""
        return self.reconstruct or self.reference_queries > 0


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ReferenceAttention:
    """Queries such as may come after a prompt, and what they may attend to there, of one layer.

    `q` `[HQ, n, D]` at the `positions` int64 `[n]`, ascending; `k`, `v` `[H, T, D]` of
    the prompt; q and k after RoPE. A logit is `q · k · scale`.
    """

    q: torch.Tensor
    positions: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    scale: float


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class AttentionProfile:
    """The attention mass that each column received, by distance, for one layer.

    `far` f32 `[H, G, E, T]`: `far[..., e, j] = Σ A_ij over query rows i with i − j >= edges[e]`,
    scaled to all `tokens` rows where only a sample was looked at, and not scaled where only the
    recent rows were. `edges[0]` is 0, so `far[..., 0, :]` is the accumulated attention. No n × n
    map is ever held. `mass_rows`: how many rows of mass 1 `far` stands for. `keys` `[H, T, D]`
    after RoPE, `values` `[H, T, D]`, `peaks` f32 `[H, G, T]`, `density`, the mean share of columns
    looked at, and `reference` where they were asked for.
    """

    far: torch.Tensor
    edges: tuple[int, ...]
    tokens: int
    mass_rows: int
    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None
    peaks: torch.Tensor | None = None
    density: float | torch.Tensor = 0.0
    reference: ReferenceAttention | None = None

    def beyond(self, distance: int) -> torch.Tensor:
        """Mass each column received from at least `distance` tokens away, `[H, G, T]`."""
        return self.far[:, :, self.edges.index(distance)]

    def accumulated(self) -> torch.Tensor:
        """All the mass each column received, `[H, G, T]`."""
        return self.far[:, :, 0]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class PromptFacts:
    """Facts about the prompt for a policy: its length and each token's class, uint8 `[T]`."""

    tokens: int
    classes: torch.Tensor


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class FittedRows:
    """Contents of R kept rows: `values` `[R, D]`, and `log_weights` f32 `[R]` for their logits.

    `keys` `[R, D]` if the keys are replaced too.
    """

    values: torch.Tensor
    log_weights: torch.Tensor
    keys: torch.Tensor | None = None


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class HeadPlan:
    """Plan for one KV head: ascending row numbers int64 `[R]` to keep, and the head's rule.

    `scores` f32 `[T]`: the scores of *all* prompt tokens; None if the rule needs none.
    `attention_coverage`: the share of the head's attention, in the measured query rows, that falls
    on the kept rows; 0 if nothing was profiled. `fitted`: values, or keys and values, that replace
    those of the kept rows, where the kept rows stand for dropped rows too.
    """

    rule: RetentionRule
    rows: torch.Tensor
    scores: torch.Tensor | None
    attention_coverage: float
    fitted: FittedRows | None = None


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class LayerPlan:
    """The plans of a layer's H KV heads."""

    shape: LayerShape
    heads: tuple[HeadPlan, ...]

    @property
    def rows(self) -> int:
        """Rows that are really kept, floors and retrieval heads included."""
        return sum(head.rows.numel() for head in self.heads)


def _f32_row_bytes(shape: LayerShape) -> int:
    return 2 * shape.head_size * 4


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class CacheFacts:
    """Facts about the whole cache for a policy that plans all layers together.

    `row_bytes`: bytes of a key and a value together under the request's codec.
    `uncompressed_heads`: (layer, head) of the retrieval heads, which keep all rows whatever the
    policy decides. `filters` f32 `[H, D]` a layer: the direction of each KV head's queries.
    `sensitivity` f32 `[HQ]` a layer: the effect of an error in a query head's output on the
    predictions. Both come from the calibration, and are empty if the policy needs none.
    """

    shapes: tuple[LayerShape, ...]
    row_bytes: Callable[[LayerShape], int] = _f32_row_bytes
    uncompressed_heads: frozenset[tuple[int, int]] = frozenset()
    filters: tuple[torch.Tensor, ...] | None = None
    sensitivity: tuple[torch.Tensor, ...] | None = None


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class LayerFacts:
    """One layer of that cache; `earlier` are the plans of the layers before it."""

    index: int
    cache: CacheFacts
    earlier: Sequence[LayerPlan] = ()

    @property
    def shape(self) -> LayerShape:
        return self.cache.shapes[self.index]

    @property
    def uncompressed_heads(self) -> frozenset[int]:
        """Heads of this layer that keep everything."""
        return frozenset(
            head for layer, head in self.cache.uncompressed_heads if layer == self.index
        )

"""The compact cache: ragged layers, the rule of each head, and whose cache it is."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence

import torch

from kvstore.errors import FingerprintMismatch
from kvstore.row_codecs import MODEL_ROWS, KeyValueLayout, RowCodec, decode_rows
from kvstore.rules import RetentionRule

# the first format, in which rows that the model computed are still written
FORMAT_VERSION = 1
# with a codec in the header
CODED_FORMAT_VERSION = 2
# with log-weights, and a codec in the header where rows are coded
WEIGHTED_FORMAT_VERSION = 3
FORMAT_VERSIONS = (FORMAT_VERSION, CODED_FORMAT_VERSION, WEIGHTED_FORMAT_VERSION)

POSITION_BYTES = 4
SCORE_BYTES = 4
FLAG_BYTES = 1
LOG_WEIGHT_BYTES = 4


def lowest_format(codec: RowCodec, *, weighted: bool) -> int:
    """The version that the oldest readers understand of those that can say this."""
    if weighted:
        return WEIGHTED_FORMAT_VERSION
    return FORMAT_VERSION if codec == MODEL_ROWS else CODED_FORMAT_VERSION


@dataclasses.dataclass(frozen=True, slots=True)
class LayerShape:
    """Shape of an attention layer: H KV heads of size D, each read by G query heads.

    `sliding_window` is the layer's window in tokens: a query attends to that many keys at most, its
    own included. None if the layer attends to all keys.
    """

    kv_heads: int
    query_heads: int
    head_size: int
    sliding_window: int | None = None

    @property
    def group(self) -> int:
        """G: query heads per KV head."""
        return self.query_heads // self.kv_heads

    def dense_rows(self, tokens: int) -> int:
        """Return the rows that all KV heads hold in a dense cache, where windows still slide."""
        window = self.sliding_window
        return self.kv_heads * (tokens if window is None else min(tokens, window))


@dataclasses.dataclass(frozen=True, slots=True)
class ModelFingerprint:
    """Identity of the model that a cache belongs to. Digests are lower-case hex SHA-256."""

    model_id: str
    revision: str
    weights_digest: str
    tokenizer_digest: str
    dtype: str

    def require_same(self, theirs: ModelFingerprint) -> None:
        """Raise `FingerprintMismatch` naming the first field that makes the caches incompatible.

        `model_id` and `revision` are names, not contents: the same weights may lie in two places,
        so they are reported only when the weights differ.
        """
        if self.weights_digest != theirs.weights_digest:
            for field in ("model_id", "revision", "weights_digest"):
                _require_equal(field, getattr(self, field), getattr(theirs, field))
        for field in ("tokenizer_digest", "dtype"):
            _require_equal(field, getattr(self, field), getattr(theirs, field))


def _require_equal(field: str, ours: str, theirs: str) -> None:
    if ours != theirs:
        raise FingerprintMismatch(field, ours, theirs)


@dataclasses.dataclass(frozen=True, slots=True)
class Fingerprint:
    """Identity of a cache; caches with equal fingerprints are interchangeable."""

    model: ModelFingerprint
    token_digest: str
    policy: str
    policy_parameters: str
    format_version: int = FORMAT_VERSION
    codec: str = MODEL_ROWS.name

    def coded_as(self, codec: RowCodec, *, weighted: bool = False) -> Fingerprint:
        """Return the same cache's fingerprint under `codec`, with log-weights if `weighted`."""
        version = lowest_format(codec, weighted=weighted)
        return dataclasses.replace(self, format_version=version, codec=codec.name)


def canonical_json(value: Mapping[str, object]) -> str:
    """One spelling per value: sorted keys, no spaces; the same in every process."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest_tokens(token_ids: Sequence[int]) -> str:
    """SHA-256 over the ids as little-endian uint32."""
    return hashlib.sha256(b"".join(t.to_bytes(4, "little") for t in token_ids)).hexdigest()


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class HeadRows:
    """A KV head's rows: views into a layer's tensors, or copies out of the pool.

    `keys`, `values` `[R, D]` (keys after RoPE), or uint8 `[R, width]` under a `layout`;
    `positions` int32 `[R]`, the original positions; `scores` f32 `[R]` and `flags` uint8 `[R]` only
    where the head's rule needs them; `log_weights` f32 `[R]`, added to the rows' logits, only where
    rows were merged.
    """

    rule: RetentionRule
    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor
    scores: torch.Tensor | None = None
    flags: torch.Tensor | None = None
    log_weights: torch.Tensor | None = None
    layout: KeyValueLayout | None = None

    @property
    def rows(self) -> int:
        return int(self.positions.shape[0])

    def decoded(self) -> HeadRows:
        """The same rows as f32 `[R, D]`."""
        if self.layout is None:
            return self
        return dataclasses.replace(
            self,
            keys=decode_rows(self.keys, self.layout.keys),
            values=decode_rows(self.values, self.layout.values),
            layout=None,
        )


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class RaggedLayer:
    """One layer's kept rows, the heads one after another, each head's rows by ascending position.

    `keys`, `values` `[R, D]` of the model's dtype, or uint8 `[R, width]` as `layout` says;
    `positions` int32 `[R]`; `head_offsets` H + 1 row numbers.
    `scores` f32 and `flags` uint8 hold the rows of just those heads whose rule needs them, in
    head order, and `log_weights` f32 those of the `weighted` heads, whose rows stand for others
    too; without such heads `weighted` may be empty. `attention_coverage`: the share of each head's
    attention probability that falls on its kept rows.
    """

    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor
    head_offsets: tuple[int, ...]
    rules: tuple[RetentionRule, ...]
    attention_coverage: tuple[float, ...]
    scores: torch.Tensor
    flags: torch.Tensor
    log_weights: torch.Tensor = dataclasses.field(default_factory=lambda: torch.empty(0))
    weighted: tuple[bool, ...] = ()
    layout: KeyValueLayout | None = None

    @classmethod
    def of_heads(cls, heads: Sequence[HeadRows]) -> RaggedLayer:
        """Copy the heads' rows into one layer in host memory; its attention coverage is unknown."""
        scores = [head.scores for head in heads if head.scores is not None]
        flags = [head.flags for head in heads if head.flags is not None]
        weights = [head.log_weights for head in heads if head.log_weights is not None]
        return cls(
            torch.cat([head.keys for head in heads]).cpu(),
            torch.cat([head.values for head in heads]).cpu(),
            torch.cat([head.positions for head in heads]).cpu(),
            tuple(itertools.accumulate((head.rows for head in heads), initial=0)),
            tuple(head.rule for head in heads),
            (0.0,) * len(heads),
            torch.cat(scores).cpu() if scores else torch.empty(0),
            torch.cat(flags).cpu() if flags else torch.empty(0, dtype=torch.uint8),
            torch.cat(weights).cpu() if weights else torch.empty(0),
            tuple(head.log_weights is not None for head in heads) if weights else (),
            heads[0].layout,
        )

    @property
    def kv_heads(self) -> int:
        return len(self.rules)

    @property
    def head_size(self) -> int:
        return self.layout.head_size if self.layout else int(self.keys.shape[1])

    @property
    def dense_row_bytes(self) -> int:
        """Bytes of one key and value in the model's dtype."""
        dtype = self.layout.dtype if self.layout else self.keys.dtype
        return 2 * self.head_size * dtype.itemsize

    @property
    def rows(self) -> int:
        return self.head_offsets[-1]

    def dense_rows(self, tokens: int) -> int:
        """Return the rows of a dense cache: of each head all, or those in its layer's window."""
        return sum(min(tokens, rule.horizon or tokens) for rule in self.rules)

    def head_row_counts(self) -> tuple[int, ...]:
        """Rows per KV head, `[H]`."""
        return tuple(b - a for a, b in zip(self.head_offsets, self.head_offsets[1:], strict=False))

    def heads(self) -> Iterator[HeadRows]:
        """Each KV head's rows as views."""
        scored = flagged = weighed = 0
        for head, rule in enumerate(self.rules):
            first, last = self.head_offsets[head], self.head_offsets[head + 1]
            rows, scores, flags, weights = last - first, None, None, None
            if rule.needs_scores:
                scores = self.scores[scored : scored + rows]
                scored += rows
            if rule.needs_flags:
                flags = self.flags[flagged : flagged + rows]
                flagged += rows
            if self.weighted and self.weighted[head]:
                weights = self.log_weights[weighed : weighed + rows]
                weighed += rows
            part = slice(first, last)
            keys, values, positions = self.keys[part], self.values[part], self.positions[part]
            yield HeadRows(rule, keys, values, positions, scores, flags, weights, self.layout)

    @property
    def nbytes(self) -> int:
        """Bytes this layer's tensors occupy, metadata included."""
        tensors = (self.keys, self.values, self.positions, self.scores, self.flags)
        return sum(t.numel() * t.element_size() for t in (*tensors, self.log_weights))


@dataclasses.dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class CompactCache:
    """The state after `next_position` tokens: one ragged layer per attention layer."""

    fingerprint: Fingerprint
    layers: tuple[RaggedLayer, ...]
    next_position: int

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    @property
    def dense_nbytes(self) -> int:
        """Bytes of keys and values of the dense cache, in the model's dtype."""
        tokens = self.next_position
        return sum(layer.dense_rows(tokens) * layer.dense_row_bytes for layer in self.layers)

    @property
    def rows_kept_ratio(self) -> float:
        """Rows kept over the rows of the dense cache; 1.0 for an empty cache."""
        dense = sum(layer.dense_rows(self.next_position) for layer in self.layers)
        return sum(layer.rows for layer in self.layers) / dense if dense else 1.0

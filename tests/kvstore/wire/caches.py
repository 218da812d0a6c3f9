"""Ragged caches for tests, and what it means that two are the same."""

from __future__ import annotations

import dataclasses
import itertools

import torch
from hypothesis import strategies as st

from kvstore.cache import (
    CompactCache,
    Fingerprint,
    LayerShape,
    ModelFingerprint,
    RaggedLayer,
    digest_tokens,
)
from kvstore.row_codecs import KeyValueLayout, RowCodec, encode_rows
from kvstore.rules import FULL_RULE, RetentionRule, ScoreUpdate, TokenClass
from kvstore.wire import CacheEncoder, CacheHeader, Frame

TOKENS = 40
CODECS = ("model", "fp8", "int8", "int4", "int8/int4", "model/fp8")

RULES = (
    FULL_RULE,
    RetentionRule(sinks=4, window=16, floor_rows=8),
    RetentionRule(protected=TokenClass.SPECIAL, sinks=4, horizon=32),
    RetentionRule(
        protected=TokenClass.SPECIAL | TokenClass.PUNCTUATION,
        budget_ratio=0.3,
        score_update=ScoreUpdate.SUM,
        generated_from=TOKENS,
        generated_window=12,
    ),
    RetentionRule(
        window=8,
        budget_rows=5,
        budget_beyond=True,
        score_update=ScoreUpdate.DECAYED,
        score_decay=0.99,
    ),
)


def fingerprint(
    dtype: str = "float32", codec: str = "model", weighted: bool = False
) -> Fingerprint:
    model = ModelFingerprint("tiny/model", "main", "a" * 64, "b" * 64, dtype)
    plain = Fingerprint(model, digest_tokens(range(TOKENS)), "coverage", '{"target":0.9}')
    return plain.coded_as(RowCodec.parse(codec), weighted=weighted)


def ragged_layer(
    rows: tuple[int, ...],
    rules: tuple[RetentionRule, ...],
    head_size: int,
    dtype: torch.dtype,
    seed: int,
    tokens: int = TOKENS,
    codec: str = "model",
    weighted: tuple[bool, ...] = (),
) -> RaggedLayer:
    """A layer whose heads hold `rows` random rows at random ascending positions."""
    source = torch.Generator().manual_seed(seed)
    total = sum(rows)
    heads = list(zip(rows, rules, strict=True))
    kept = [torch.randperm(tokens, generator=source)[:n].sort().values for n in rows]
    scored = sum(n for n, rule in heads if rule.needs_scores)
    flagged = sum(n for n, rule in heads if rule.needs_flags)
    layout = KeyValueLayout(RowCodec.parse(codec), head_size, dtype)
    keys = torch.randn(total, head_size, generator=source).to(dtype)
    values = torch.randn(total, head_size, generator=source).to(dtype)
    return RaggedLayer(
        keys=encode_rows(keys, layout.keys),
        values=encode_rows(values, layout.values),
        positions=torch.cat(kept).to(torch.int32),
        head_offsets=tuple(itertools.accumulate(rows, initial=0)),
        rules=rules,
        attention_coverage=tuple(torch.rand(len(rows), generator=source).tolist()),
        scores=torch.rand(scored, generator=source),
        flags=torch.randint(0, 4, (flagged,), generator=source).to(torch.uint8),
        log_weights=torch.randn(sum(itertools.compress(rows, weighted)), generator=source),
        weighted=weighted,
        layout=None if layout.unquantized else layout,
    )


def two_layers(
    dtype: str = "float32", codec: str = "model", weighted: bool = False
) -> tuple[CompactCache, tuple[LayerShape, ...]]:
    """The cache of the golden streams: every kind of section, and one empty head.

    Where it is `weighted`, the first head of the first layer is.
    """
    row_dtype = getattr(torch, dtype)
    shapes = (LayerShape(3, 6, 4), LayerShape(2, 2, 8, sliding_window=32))
    weighs, rules = (True, False, False) if weighted else (), (RULES[1], RULES[2], RULES[3])
    layers = (
        ragged_layer((6, 0, 9), rules, 4, row_dtype, 1, codec=codec, weighted=weighs),
        ragged_layer((7, 1), (RULES[4], RULES[2]), 8, row_dtype, 2, codec=codec),
    )
    return CompactCache(fingerprint(dtype, codec, weighted), layers, TOKENS), shapes


@st.composite
def caches(draw: st.DrawFn) -> tuple[CompactCache, tuple[LayerShape, ...]]:
    """Random small caches with their layers' shapes."""
    dtype = draw(st.sampled_from(("float32", "float16", "bfloat16")))
    codec = draw(st.sampled_from(CODECS))
    tokens = draw(st.integers(0, 12))
    layers, shapes = [], []
    for seed in range(draw(st.integers(1, 3))):
        rows = tuple(draw(st.lists(st.integers(0, tokens), min_size=1, max_size=4)))
        rules = tuple(draw(st.sampled_from(RULES)) for _ in rows)
        head_size = draw(st.integers(1, 9))
        group = draw(st.integers(1, 3))
        window = draw(st.none() | st.integers(1, 64))
        shapes.append(LayerShape(len(rows), len(rows) * group, head_size, window))
        row_dtype = getattr(torch, dtype)
        weighted = tuple(draw(st.booleans()) for _ in rows)
        weighted = weighted if any(weighted) else ()
        layer = ragged_layer(rows, rules, head_size, row_dtype, seed, tokens, codec, weighted)
        layers.append(layer)
    weighs = draw(st.booleans()) or any(layer.weighted for layer in layers)
    identity = fingerprint(dtype, codec, weighs)
    return CompactCache(identity, tuple(layers), tokens), tuple(shapes)


def numbered(cache: CompactCache, number: int) -> CompactCache:
    """The same rows as a cache of other tokens, with a content key of its own."""
    identity = dataclasses.replace(cache.fingerprint, token_digest=digest_tokens([number]))
    return dataclasses.replace(cache, fingerprint=identity)


def encode(
    cache: CompactCache, shapes: tuple[LayerShape, ...], max_payload_bytes: int = 1 << 20
) -> list[Frame]:
    """All frames by the codec under test."""
    header = CacheHeader(cache.fingerprint, shapes, cache.next_position)
    encoder = CacheEncoder(header, max_payload_bytes)
    frames = [encoder.header()]
    for number, layer in enumerate(cache.layers):
        frames.extend(encoder.layer(number, layer))
    return [*frames, encoder.trailer()]


def same(ours: CompactCache, theirs: CompactCache) -> bool:
    """Equal to the bit: fingerprint, rules, offsets, and every tensor's dtype, shape and bytes."""
    if (ours.fingerprint, ours.next_position) != (theirs.fingerprint, theirs.next_position):
        return False
    return len(ours.layers) == len(theirs.layers) and all(
        _same_layer(a, b) for a, b in zip(ours.layers, theirs.layers, strict=True)
    )


def _same_layer(ours: RaggedLayer, theirs: RaggedLayer) -> bool:
    for field in dataclasses.fields(RaggedLayer):
        mine, other = getattr(ours, field.name), getattr(theirs, field.name)
        if not isinstance(mine, torch.Tensor):
            if mine != other:
                return False
        elif mine.dtype != other.dtype or mine.shape != other.shape or _raw(mine) != _raw(other):
            return False
    return True


def _raw(tensor: torch.Tensor) -> list[int]:
    return tensor.flatten().view(torch.uint8).tolist() if tensor.numel() else []

"""The fast codec against the obvious one, both ways."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.cache import CompactCache, LayerShape
from kvstore.errors import InvalidParameter
from kvstore.rules import FULL_RULE, RetentionRule
from kvstore.wire import MAX_PAYLOAD_BYTES, CacheDecoder, CacheEncoder, CacheHeader, WireLimits
from kvstore.wire.frames import FrameKind
from kvstore.wire.reference import decode_cache, encode_cache
from tests.kvstore.wire.caches import (
    caches,
    encode,
    fingerprint,
    ragged_layer,
    same,
    two_layers,
)
from tests.kvstore.wire.receiving import receive


@settings(max_examples=60, deadline=None)
@given(caches(), st.integers(1, 200))
def test_both_codecs_write_the_same_frames(
    cache_and_shapes: tuple[CompactCache, tuple[LayerShape, ...]], smaller: int
) -> None:
    cache, shapes = cache_and_shapes
    # the index does not fit a tiny limit and is never cut, so only sections feel it
    assert encode(cache, shapes, smaller) == encode_cache(cache, shapes, smaller)


@settings(max_examples=60, deadline=None)
@given(caches(), st.integers(1, 200))
def test_each_codec_reads_what_the_other_wrote(
    cache_and_shapes: tuple[CompactCache, tuple[LayerShape, ...]], smaller: int
) -> None:
    cache, shapes = cache_and_shapes
    assert same(receive(encode_cache(cache, shapes, smaller)), cache)
    assert same(decode_cache(encode(cache, shapes, smaller)), cache)


def test_sections_larger_than_a_frame_are_cut_at_one_mebibyte() -> None:
    tokens, head_size = 5_000, 64
    layer = ragged_layer((tokens,), (FULL_RULE,), head_size, torch.float32, 3, tokens)
    cache = CompactCache(fingerprint(), (layer,), tokens)
    frames = encode(cache, (LayerShape(1, 1, head_size),))
    keys = [f for f in frames if f.kind == FrameKind.KEYS]
    assert [len(f.payload) for f in keys] == [MAX_PAYLOAD_BYTES, tokens * head_size * 4 - (1 << 20)]
    assert [f.offset for f in keys] == [0, MAX_PAYLOAD_BYTES]
    assert same(receive(frames), cache)


def test_a_layer_of_empty_heads_is_complete_with_its_index() -> None:
    layer = ragged_layer((0, 0), (FULL_RULE, FULL_RULE), 4, torch.float32, 0)
    cache = CompactCache(fingerprint(), (layer,), 40)
    frames = encode(cache, (LayerShape(2, 2, 4),))
    assert [f.kind for f in frames] == [FrameKind.HEADER, FrameKind.INDEX, FrameKind.TRAILER]
    decoder = CacheDecoder(WireLimits())
    assert decoder.feed(frames[0]) is None
    assert decoder.feed(frames[1]) is not None
    assert not decoder.complete
    decoder.feed(frames[2])
    assert decoder.complete


def test_a_layer_comes_out_with_the_frame_that_completes_it() -> None:
    cache, shapes = two_layers()
    frames = encode(cache, shapes, 50)
    decoder = CacheDecoder(WireLimits())
    finished = [frame.layer for frame in frames if decoder.feed(frame) is not None]
    assert finished == [0, 1]
    last_of_first = max(i for i, f in enumerate(frames[:-1]) if f.layer == 0)
    decoder = CacheDecoder(WireLimits())
    outcomes = [decoder.feed(frame) is not None for frame in frames]
    assert outcomes.index(True) == last_of_first


def test_payload_bytes_count_index_and_tensors() -> None:
    cache, shapes = two_layers()
    encoder = CacheEncoder(CacheHeader(cache.fingerprint, shapes, cache.next_position))
    frames = list(
        itertools.chain.from_iterable(
            encoder.layer(i, layer) for i, layer in enumerate(cache.layers)
        )
    )
    assert encoder.payload_bytes == sum(len(f.payload) for f in frames)
    tensors = sum(len(f.payload) for f in frames if f.kind != FrameKind.INDEX)
    assert tensors == cache.nbytes


def test_non_contiguous_tensors_are_written_as_they_read() -> None:
    cache, shapes = two_layers()
    first = cache.layers[0]
    turned = dataclasses.replace(first, keys=first.keys.t().contiguous().t())
    assert not turned.keys.is_contiguous()
    strided = dataclasses.replace(cache, layers=(turned, cache.layers[1]))
    assert encode(strided, shapes) == encode(cache, shapes)


@pytest.mark.parametrize(
    "change",
    [
        {"keys": torch.zeros(15, 5)},
        {"keys": torch.zeros(15, 4, dtype=torch.float16)},
        {"positions": torch.zeros(15, dtype=torch.int64)},
        {"scores": torch.zeros(0)},
        {"flags": torch.zeros(15, dtype=torch.uint8)},
        {"attention_coverage": (0.5, 0.5)},
        {"attention_coverage": (0.5, 0.5, float("nan"))},
        {"rules": (RetentionRule(sinks=-1), FULL_RULE, FULL_RULE)},
        {"head_offsets": (1, 6, 6, 16)},
        {"head_offsets": (0, 6, 5, 15)},
    ],
)
def test_a_layer_that_no_reader_would_take_is_not_written(change: dict[str, object]) -> None:
    cache, shapes = two_layers()
    encoder = CacheEncoder(CacheHeader(cache.fingerprint, shapes, cache.next_position))
    with pytest.raises(InvalidParameter):
        encoder.layer(0, dataclasses.replace(cache.layers[0], **change))


def test_an_index_that_exceeds_a_frame_is_not_written() -> None:
    heads = 5_000
    layer = ragged_layer((0,) * heads, (FULL_RULE,) * heads, 1, torch.float32, 0)
    header = CacheHeader(fingerprint(), (LayerShape(heads, heads, 1),), 1)
    with pytest.raises(InvalidParameter, match="index"):
        CacheEncoder(header).layer(0, layer)


def test_layers_are_written_in_order_and_all_of_them() -> None:
    cache, shapes = two_layers()
    encoder = CacheEncoder(CacheHeader(cache.fingerprint, shapes, cache.next_position))
    with pytest.raises(InvalidParameter, match="layer"):
        encoder.layer(1, cache.layers[1])
    list(encoder.layer(0, cache.layers[0]))
    with pytest.raises(InvalidParameter, match="layer"):
        encoder.layer(0, cache.layers[0])
    with pytest.raises(InvalidParameter, match="trailer"):
        encoder.trailer()

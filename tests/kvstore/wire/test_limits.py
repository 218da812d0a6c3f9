"""Sizes are refused before room is made for them."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from kvstore.errors import CorruptCache, LimitExceeded
from kvstore.wire import CacheDecoder, Frame, FrameKind, WireLimits
from tests.kvstore.wire.caches import encode, same, two_layers
from tests.kvstore.wire.receiving import receive

CACHE, SHAPES = two_layers()
FRAMES = encode(CACHE, SHAPES)
EXACT = WireLimits(max_tokens=40, max_layers=2, max_cache_bytes=CACHE.nbytes)


@pytest.fixture
def allocations(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Shapes of the tensors allocated from here on."""
    seen: list[object] = []
    empty = torch.empty

    def watched(shape: tuple[int, ...], *, dtype: torch.dtype) -> torch.Tensor:
        seen.append(shape)
        return empty(shape, dtype=dtype)

    monkeypatch.setattr(torch, "empty", watched)
    return seen


def test_a_cache_exactly_at_its_limits_is_taken(allocations: list[object]) -> None:
    assert same(receive(FRAMES, EXACT), CACHE)
    # keys, values, positions, scores, flags of two layers: what the tests below watch for
    assert len(allocations) == 10


@pytest.mark.parametrize(
    ("limit", "what"),
    [("max_tokens", "tokens"), ("max_layers", "layers"), ("max_cache_bytes", "cache_bytes")],
)
def test_one_more_than_a_limit_is_refused(limit: str, what: str) -> None:
    lower = dataclasses.replace(EXACT, **{limit: getattr(EXACT, limit) - 1})
    with pytest.raises(LimitExceeded) as caught:
        receive(FRAMES, lower)
    assert caught.value.what == what


def test_bytes_are_counted_over_all_layers() -> None:
    largest = max(layer.nbytes for layer in CACHE.layers)
    decoder = CacheDecoder(dataclasses.replace(EXACT, max_cache_bytes=largest))
    second_index = next(i for i, f in enumerate(FRAMES) if f.layer == 1)
    first = [decoder.feed(frame) for frame in FRAMES[:second_index]]
    assert first[-1] is not None
    with pytest.raises(LimitExceeded):
        decoder.feed(FRAMES[second_index])


def test_a_huge_header_and_index_allocate_nothing(allocations: list[object]) -> None:
    header, index = json.loads(FRAMES[0].payload), json.loads(FRAMES[1].payload)
    header["tokens"] = 2**31 - 1
    header["layers"][0]["head_size"] = 65_536
    index["rows"] = [2**31 - 1] * 3
    decoder = CacheDecoder(WireLimits(max_tokens=2**31 - 1))
    decoder.feed(Frame.of(FrameKind.HEADER, json.dumps(header).encode()))
    with pytest.raises(LimitExceeded) as caught:
        decoder.feed(Frame.of(FrameKind.INDEX, json.dumps(index).encode()))
    # keys and values in float32 and positions; flags of two heads, scores of one
    rows = 3 * (2**31 - 1)
    assert caught.value.size == rows * (65_536 * 8 + 4) + (2**31 - 1) * 6
    assert allocations == []


def test_a_payload_beyond_one_mebibyte_is_refused_unread() -> None:
    decoder = CacheDecoder(WireLimits())
    with pytest.raises(CorruptCache, match="payload"):
        decoder.feed(Frame(FrameKind.HEADER, 0, 0, bytes((1 << 20) + 1), 0))

"""Messages of a cache equal those that protobuf writes, at the first fetch and later ones."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwise.v1 import store_pb2
from kvstore.cache import CompactCache
from kvstore.wire import MAX_PAYLOAD_BYTES, Frame, FrameKind
from services.prefill.sharing.frame_message import frame_message
from services.prefill.sharing.held_messages import HeldMessages
from services.runtime.serving.frames import fill_frame
from tests.kvstore.wire.caches import encode, two_layers


def _as_protobuf(frame: Frame) -> bytes:
    response = store_pb2.FetchCacheResponse()
    fill_frame(response.frame, frame)
    return response.SerializeToString()


@given(
    kind=st.sampled_from(FrameKind),
    layer=st.integers(0, 2**32 - 1),
    offset=st.integers(0, 2**64 - 1),
    payload=st.binary(min_size=1, max_size=300),
    checksum=st.integers(0, 2**32 - 1),
)
def test_a_message_equals_what_protobuf_writes(
    kind: FrameKind, layer: int, offset: int, payload: bytes, checksum: int
) -> None:
    frame = Frame(kind, layer, offset, payload, checksum)
    assert frame_message(frame) == _as_protobuf(frame)


def test_messages_of_zeros_and_of_the_maximum_size_equal_protobuf() -> None:
    for size in (1, 127, 128, MAX_PAYLOAD_BYTES):
        for checksum in (0, 1):
            frame = Frame(FrameKind.KEYS, 0, 0, bytes(size), checksum)
            assert frame_message(frame) == _as_protobuf(frame)


def _held(codec: str) -> tuple[CompactCache, HeldMessages]:
    cache, shapes = two_layers(codec=codec)
    return cache, HeldMessages(shapes)


@pytest.mark.parametrize("codec", ["model", "int8/int4"])
def test_a_second_fetch_sends_the_same_messages(codec: str) -> None:
    cache, messages = _held(codec)
    expected = [_as_protobuf(frame) for frame in encode(*two_layers(codec=codec))]
    assert list(messages.of(cache)) == expected
    assert len(messages) == 1
    assert list(messages.of(cache)) == expected


def test_kept_messages_are_freed_with_their_cache() -> None:
    cache, messages = _held("model")
    for _ in messages.of(cache):
        pass
    tensor = weakref.ref(cache.layers[0].keys)
    del cache
    gc.collect()
    assert (len(messages), tensor()) == (0, None)


def test_messages_of_a_partly_read_or_strided_cache_are_not_kept() -> None:
    cache, messages = _held("model")
    reading = messages.of(cache)
    next(reading)
    reading.close()
    strided = dataclasses.replace(
        cache,
        layers=tuple(
            dataclasses.replace(layer, keys=layer.keys.repeat(1, 2)[:, : layer.keys.shape[1]])
            for layer in cache.layers
        ),
    )
    assert [*messages.of(strided)] == [*messages.of(cache)]
    # only those of the contiguous cache
    assert len(messages) == 1

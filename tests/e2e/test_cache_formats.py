"""Prefill writes no format that its caller does not read, and says so before it computes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct

from headwise import Client, HeadwiseError, Refused
from headwise.errors import from_rpc_error
from headwise.v1 import cache_pb2, prefill_pb2, prefill_pb2_grpc, store_pb2, store_pb2_grpc
from tests.conftest import Pair

pytestmark = pytest.mark.processes

_TOKENS = [2 + 7 * n % 500 for n in range(300)]
_CODED = cache_pb2.RowCodec(keys="int8")


@pytest.fixture
def channel(tiny_pair: Pair) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(tiny_pair[0].target) as channel:
        yield channel


def _policy(name: str) -> cache_pb2.Policy:
    parameters = Struct()
    if name != "full":
        parameters["budget"] = 0.2
    return cache_pb2.Policy(name=name, parameters=parameters)


def _prefilled_format(
    channel: grpc.Channel, policy: str, codec: cache_pb2.RowCodec | None, formats: Sequence[int]
) -> int:
    """Return the format of the cache that Prefill sends."""
    request = prefill_pb2.PrefillRequest(
        token_ids=_TOKENS, policy=_policy(policy), codec=codec, cache_formats=formats
    )
    frames = [
        response.frame
        for response in prefill_pb2_grpc.PrefillServiceStub(channel).Prefill(request, timeout=60)
        if response.HasField("frame")
    ]
    kinds = {frame.kind for frame in frames}
    version: int = json.loads(frames[0].payload)["format_version"]
    assert (cache_pb2.FRAME_KIND_LOG_WEIGHTS in kinds) == (version == 3)
    return version


@pytest.mark.parametrize(
    ("policy", "codec", "formats", "version"),
    [
        ("full", None, (), 1),
        ("full", None, (1,), 1),
        # the lowest that can say it, for the oldest readers
        ("full", None, (1, 2, 3), 1),
        ("full", _CODED, (), 2),
        ("full", _CODED, (1, 2, 3), 2),
        ("attention_matching", None, (1, 2, 3), 3),
        ("attention_matching", _CODED, (3, 9), 3),
    ],
)
def test_a_cache_comes_in_the_lowest_format_that_can_say_it(
    channel: grpc.Channel,
    policy: str,
    codec: cache_pb2.RowCodec | None,
    formats: Sequence[int],
    version: int,
) -> None:
    assert _prefilled_format(channel, policy, codec, formats) == version


@pytest.mark.parametrize(
    ("policy", "codec", "formats", "needed"),
    [
        ("full", None, (2,), "1"),
        ("full", _CODED, (1,), "2"),
        ("attention_matching", None, (1, 2), "3"),
        ("attention_matching", None, (), "3"),
    ],
)
def test_a_format_that_the_caller_does_not_read_is_refused(
    channel: grpc.Channel,
    policy: str,
    codec: cache_pb2.RowCodec | None,
    formats: Sequence[int],
    needed: str,
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        _prefilled_format(channel, policy, codec, formats)
    _require_refused(from_rpc_error(caught.value), needed)


def test_a_stored_cache_is_sent_only_to_readers_of_its_format(
    tiny_pair: Pair, channel: grpc.Channel
) -> None:
    store = store_pb2_grpc.CacheServiceStub(channel)
    with Client(tiny_pair[1].target) as client:
        stored = client.caches.keep(_TOKENS, policy="attention_matching", ttl_seconds=30)
        # decode reads it: the answer is that of the complete prompt
        complete = client.generate([*_TOKENS, 5], policy="attention_matching", max_tokens=2)
        continued = client.generate([5], cache_handle=stored.handle, max_tokens=2)
        expected = [token for delta in complete for token in delta.token_ids]
        assert [token for delta in continued for token in delta.token_ids] == expected
        assert expected
        request = store_pb2.FetchCacheRequest(handle=stored.handle, release=True)
        with pytest.raises(grpc.RpcError) as caught:
            list(store.FetchCache(request, timeout=30))
        _require_refused(from_rpc_error(caught.value), "3")
        # the refused call has not ended the lease
        request.release = False
        request.cache_formats.append(3)
        assert list(store.FetchCache(request, timeout=30))
        # decode drops its resident cache with the lease
        client.caches.release(stored.handle)


def _require_refused(error: HeadwiseError, needed: str) -> None:
    assert isinstance(error, Refused)
    assert (error.reason, error.field) == ("CACHE_FORMAT_NOT_READ", "cache_formats")
    assert error.metadata["needed"] == needed

"""Unknown fields of a request are refused; unknown fields of an answer are ignored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import pytest

from headwise import NotSupported
from headwise.errors import from_rpc_error
from headwise.v1 import cache_pb2, decode_pb2, prefill_pb2, store_pb2
from tests.conftest import Pair

pytestmark = pytest.mark.processes

# field 1023 of no message here, with the value 1
_NEWER = b"\xf8\x3f\x01"


def _answers(target: str, method: str, request: bytes) -> Sequence[bytes]:
    """Return the answers of a call whose messages are bytes on both sides."""
    with grpc.insecure_channel(target) as channel:
        call: Any = channel.unary_stream(f"/headwise.v1.{method}")
        return list(call(request, timeout=60))


def _refused_field(target: str, method: str, request: bytes) -> str | None:
    with pytest.raises(grpc.RpcError) as caught:
        _answers(target, method, request)
    error = from_rpc_error(caught.value)
    assert isinstance(error, NotSupported)
    assert error.reason == "UNKNOWN_FIELD"
    return error.field


def test_generate_names_what_it_does_not_know(tiny_pair: Pair) -> None:
    target, method = tiny_pair[1].target, "DecodeService/Generate"
    plain = decode_pb2.GenerateRequest(text="while True:", max_tokens=2).SerializeToString()
    assert _answers(target, method, plain)
    assert _refused_field(target, method, plain + _NEWER) == "1023"
    messages = [decode_pb2.ChatMessage(role="user", content="Hi"), _newer(decode_pb2.ChatMessage)]
    for part, field in (
        (decode_pb2.GenerateRequest(sampling=_newer(decode_pb2.Sampling)), "sampling.1023"),
        (
            decode_pb2.GenerateRequest(chat=decode_pb2.ChatMessages(messages=messages)),
            "chat.messages[1].1023",
        ),
    ):
        assert _refused_field(target, method, plain + part.SerializeToString()) == field


def test_a_context_to_keep_is_asked_for_in_known_terms(tiny_pair: Pair) -> None:
    request = store_pb2.KeepCacheRequest(text="while True:", keep_for_seconds=5)
    newer = request.SerializeToString() + _NEWER
    for service in tiny_pair:
        assert _refused_field(service.target, "CacheService/KeepCache", newer) == "1023"


def test_prefill_takes_what_a_newer_decode_adds(tiny_pair: Pair) -> None:
    request = prefill_pb2.PrefillRequest(token_ids=[5, 6, 7]).SerializeToString()
    *_, last = _answers(tiny_pair[0].target, "PrefillService/Prefill", request + _NEWER)
    frame = prefill_pb2.PrefillResponse.FromString(last).frame
    assert frame.kind == cache_pb2.FRAME_KIND_TRAILER


def _newer(kind: Any) -> Any:
    """A message with a field more than its contract has."""
    return kind.FromString(_NEWER)

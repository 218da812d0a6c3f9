"""Prompts that are made to cost much: refused by counting, or worked on while others go on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headwise import HeadwiseError
from headwise.errors import from_rpc_error
from headwise.v1 import (
    decode_pb2,
    decode_pb2_grpc,
    prefill_pb2,
    prefill_pb2_grpc,
    store_pb2,
    store_pb2_grpc,
)
from services.demo.processes import Service
from tests.conftest import Pair

pytestmark = pytest.mark.processes

# within the 4 MiB of a message: empty messages of two bytes each
_EMPTY_MESSAGES = 2_000_000
_PROBE_SECONDS = 5.0


class Probe:
    """Asks for health in a thread, as a kubelet would, and counts the answers."""

    def __init__(self, service: Service) -> None:
        self._channel = grpc.insecure_channel(service.target)
        self._stub = health_pb2_grpc.HealthStub(self._channel)
        self._end = threading.Event()
        self.answered = 0
        self.failed = 0
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Probe:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        self._thread.join()
        self._channel.close()

    def _ask(self) -> None:
        request = health_pb2.HealthCheckRequest(service="live")
        while not self._end.wait(0.02):
            try:
                self._stub.Check(request, timeout=_PROBE_SECONDS)
                self.answered += 1
            except grpc.RpcError:
                self.failed += 1


def _generate(service: Service, request: decode_pb2.GenerateRequest) -> object:
    with grpc.insecure_channel(service.target) as channel:
        return list(decode_pb2_grpc.DecodeServiceStub(channel).Generate(request, timeout=120))


def _keep(service: Service, request: store_pb2.KeepCacheRequest) -> object:
    with grpc.insecure_channel(service.target) as channel:
        return store_pb2_grpc.CacheServiceStub(channel).KeepCache(request, timeout=120)


def _refusal(call: Callable[[], object]) -> HeadwiseError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return from_rpc_error(caught.value)


def _empty_messages() -> decode_pb2.ChatMessages:
    chat = decode_pb2.ChatMessages()
    chat.MergeFromString(b"\x0a\x00" * _EMPTY_MESSAGES)
    return chat


@pytest.fixture
def probes(tiny_pair: Pair) -> Iterator[tuple[Probe, ...]]:
    """Probes of both services, each of which must be answered."""
    with Probe(tiny_pair[0]) as prefill, Probe(tiny_pair[1]) as decode:
        yield prefill, decode
    for probe in (prefill, decode):
        assert not probe.failed, f"no answer in {_PROBE_SECONDS} s"


def test_two_million_empty_messages_are_refused_by_their_number(
    tiny_pair: Pair, probes: object
) -> None:
    prefill, decode = tiny_pair
    chat = _empty_messages()
    kept = store_pb2.KeepCacheRequest(chat=chat, keep_for_seconds=60)
    for error in (
        _refusal(lambda: _generate(decode, decode_pb2.GenerateRequest(chat=chat))),
        _refusal(lambda: _keep(prefill, kept)),
        _refusal(lambda: _keep(decode, kept)),
    ):
        assert error.reason == "PROMPT_TOO_LONG"
        assert error.field == "chat.messages"
        assert "at least 2000000 tokens" in error.message


def test_text_that_cannot_fit_is_refused_by_its_characters(tiny_pair: Pair, probes: object) -> None:
    prefill, decode = tiny_pair
    text = "hello compound world " * 190_000
    one = decode_pb2.ChatMessages(messages=[decode_pb2.ChatMessage(role="user", content=text)])
    for error in (
        _refusal(lambda: _generate(decode, decode_pb2.GenerateRequest(text=text))),
        _refusal(lambda: _generate(decode, decode_pb2.GenerateRequest(chat=one))),
        _refusal(lambda: _keep(prefill, store_pb2.KeepCacheRequest(text=text, keep_for_seconds=9))),
    ):
        assert error.reason == "PROMPT_TOO_LONG"
        assert "at least" in error.message


def test_token_ids_are_counted_before_they_are_read(tiny_pair: Pair, probes: object) -> None:
    prefill, decode = tiny_pair
    ids = [5] * 4_000_000
    tokens = decode_pb2.TokenIds(ids=ids)
    errors = [_refusal(lambda: _generate(decode, decode_pb2.GenerateRequest(tokens=tokens)))]
    with grpc.insecure_channel(prefill.target) as channel:
        stub = prefill_pb2_grpc.PrefillServiceStub(channel)
        request = prefill_pb2.PrefillRequest(token_ids=ids)
        errors.append(_refusal(lambda: list(stub.Prefill(request, timeout=60))))
    assert [error.reason for error in errors] == ["PROMPT_TOO_LONG"] * 2
    assert "4000000 tokens" in errors[0].message


def test_probes_are_answered_while_long_texts_are_tokenized(
    tiny_pair: Pair, probes: object
) -> None:
    prefill, decode = tiny_pair
    # just short enough by its characters, and too long by its tokens
    text = "x y " * 30_000
    errors: list[HeadwiseError] = []

    def ask(place: int) -> None:
        generate = decode_pb2.GenerateRequest(text=text)
        kept = store_pb2.KeepCacheRequest(text=text, keep_for_seconds=60)
        call = (lambda: _generate(decode, generate)) if place % 2 else lambda: _keep(prefill, kept)
        errors.append(_refusal(call))

    asking = [threading.Thread(target=ask, args=(place,)) for place in range(12)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(120)
    assert [error.reason for error in errors] == ["PROMPT_TOO_LONG"] * 12


def test_a_policy_of_megabytes_and_a_long_stop_text_are_refused(tiny_pair: Pair) -> None:
    _, decode = tiny_pair
    policy = decode_pb2.GenerateRequest(text="x").policy
    policy.parameters.update({f"p{n}": "x" * 1000 for n in range(100)})
    request = decode_pb2.GenerateRequest(text="x", policy=policy)
    error = _refusal(lambda: _generate(decode, request))
    assert (error.reason, error.field) == ("PARAMETER_OUT_OF_RANGE", "policy")
    request = decode_pb2.GenerateRequest(text="x", stop=["x" * 1025])
    error = _refusal(lambda: _generate(decode, request))
    assert (error.reason, error.field) == ("PARAMETER_OUT_OF_RANGE", "stop[0]")

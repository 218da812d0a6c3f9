"""Readers that stop: they hold neither prefill's turn, nor memory for long."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from headwise import Overloaded
from headwise.connection import TENANT_KEY
from headwise.errors import DeadlineExceeded
from headwise.v1 import cache_pb2, decode_pb2, decode_pb2_grpc, prefill_pb2, prefill_pb2_grpc
from services.demo.processes import Service, running_service
from tests.conftest import running_pair
from tests.observe import scrape, wait_until
from tests.security.calls import error_of, unread

pytestmark = pytest.mark.processes

# what no window on the way can hold: 8 MB of the tiny model
_LONG = 16_000
# two such caches fill it
_BUFFER = 16 << 20
_STALL = ("--reader-stall-seconds", "2")


@contextlib.contextmanager
def _prefill(model: Path, *arguments: str) -> Iterator[Service]:
    with running_service("prefill", ["--model", str(model), *arguments]) as service:
        yield service


def _request(tokens: int, first: int = 2) -> prefill_pb2.PrefillRequest:
    ids = [2 + (first + 7 * place) % 500 for place in range(tokens)]
    return prefill_pb2.PrefillRequest(token_ids=ids, policy=cache_pb2.Policy(name="full"))


def _seconds(channel: grpc.Channel, tenant: str, first: int) -> float:
    """Return the seconds that a short prompt of this tenant takes."""
    began = time.monotonic()
    stub = prefill_pb2_grpc.PrefillServiceStub(channel)
    list(stub.Prefill(_request(200, first), metadata=[(TENANT_KEY, tenant)], timeout=30))
    return time.monotonic() - began


def _unread_bytes(service: Service) -> float:
    return scrape(service.metrics_url)["headwise_prefill_unread_bytes"]


def test_a_reader_that_stops_holds_nobody_up_and_is_ended_with_a_reason(tiny_model: Path) -> None:
    with (
        _prefill(tiny_model, *_STALL) as service,
        grpc.insecure_channel(service.target) as hostile,
        grpc.insecure_channel(service.target) as other,
    ):
        stub = prefill_pb2_grpc.PrefillServiceStub(hostile)
        call = unread(stub.Prefill(_request(_LONG), metadata=[(TENANT_KEY, "hostile")]))
        wait_until(lambda: _unread_bytes(service) > 0, 30, "a computed cache that is not read")
        assert _seconds(other, "victim", 5) < 10
        # its cache is freed although it reads nothing
        wait_until(lambda: _unread_bytes(service) == 0, 30, "the end of the call")
        error = error_of(call)
        assert isinstance(error, DeadlineExceeded)
        assert error.reason == "READER_STALLED"


def test_unread_caches_are_bounded_and_another_tenant_still_gets_its_turn(tiny_model: Path) -> None:
    with (
        _prefill(tiny_model, "--send-buffer-bytes", str(_BUFFER)) as service,
        grpc.insecure_channel(service.target) as hostile,
        grpc.insecure_channel(service.target) as other,
    ):
        stub = prefill_pb2_grpc.PrefillServiceStub(hostile)
        metadata = [(TENANT_KEY, "hostile")]
        calls = [stub.Prefill(_request(_LONG, first), metadata=metadata) for first in range(4)]
        wait_until(lambda: _unread_bytes(service) >= _BUFFER, 60, "a full buffer")
        assert scrape(service.metrics_url)["headwise_prefill_queued"] == 2
        assert _seconds(other, "victim", 5) < 30
        assert _unread_bytes(service) < _BUFFER
        yielded = scrape(service.metrics_url)
        assert yielded["headwise_shares_yielded_total{shared=unread_bytes}"] == 1
        # whichever of the four was computed first
        [error] = [error for call in calls if (error := error_of(call)) is not None]
    assert isinstance(error, Overloaded)
    assert error.reason == "UNREAD_CACHES"


def test_a_client_of_decode_that_stops_reading_is_ended(tiny_model: Path) -> None:
    with (
        running_pair(str(tiny_model), (), _STALL) as (_, decode),
        # a window that does not grow
        grpc.insecure_channel(decode.target, [("grpc.http2.bdp_probe", 0)]) as channel,
    ):
        stub = decode_pb2_grpc.DecodeServiceStub(channel)
        request = decode_pb2.GenerateRequest(
            text="word",
            max_tokens=2_000,
            ignore_eos=True,
            sampling=decode_pb2.Sampling(logprobs=20),
        )
        call = unread(stub.Generate(request))
        running = "headwise_running_requests{method=Generate}"
        wait_until(lambda: scrape(decode.metrics_url)["headwise_sequences"] > 0, 30, "the answer")
        wait_until(lambda: scrape(decode.metrics_url)["headwise_sequences"] == 0, 120, "its end")
        error = error_of(call)
        assert isinstance(error, DeadlineExceeded)
        assert error.reason == "READER_STALLED"
        wait_until(lambda: scrape(decode.metrics_url)[running] == 0, 30, "the end of the call")

"""Peers that send what gRPC's own client would not, to a real service that logs everything."""

from __future__ import annotations

import socket
import struct
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from services.demo.processes import Service, running_service
from services.runtime.process.logs import MAX_MESSAGE
from tests.observe import scrape, wait_until
from tests.security.http2_peer import Http2Peer, http2_peer
from tests.security.tokens import entry, write

pytestmark = pytest.mark.processes

_DESCRIBE = "/headwise.v1.PrefillService/Describe"
_PREFILL = "/headwise.v1.PrefillService/Prefill"
_UNAUTHENTICATED = 16
_REFUSED_STREAM = 7
_STREAMS = 8
_TOKEN = "prefill-token-4b1fe0"


@pytest.fixture(scope="module")
def prefill(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    tokens = write(tmp_path_factory.mktemp("doors") / "tokens.toml", entry(_TOKEN, "acme"))
    arguments = ["--model", str(tiny_model), "--tokens", str(tokens), "--log-level", "DEBUG"]
    arguments += ["--max-connection-streams", str(_STREAMS)]
    with running_service("prefill", arguments) as service:
        yield service


@pytest.fixture
def peer(prefill: Service) -> Iterator[Http2Peer]:
    with http2_peer(prefill.port) as peer:
        yield peer


def _logged(service: Service, text: str) -> str:
    wait_until(lambda: text in service.log.read_text(), 10, f"{text!r} in the log")
    return service.log.read_text()


def test_metadata_that_is_no_text_is_refused_and_not_logged(
    prefill: Service, peer: Http2Peer
) -> None:
    before = len(prefill.log.read_text())
    stray = (
        ("authorization", b"Bearer SECRET-7f2c\xff\xfe"),
        ("x-request-id", b"SECRET-id\xff"),
        ("x-padding", b"\xff" * 7000),
    )
    for _ in range(20):
        answer = peer.wait(peer.call(_DESCRIBE, b"", stray), 20)
        assert answer.status == _UNAUTHENTICATED
    peer.wait(peer.call(_DESCRIBE, b"", [("x-request-id", "the-last-one")]), 20)
    log = _logged(prefill, "the-last-one")
    assert "SECRET" not in log
    assert "Invalid encoding" not in log
    # a line for each call, of 20 calls with 140 kB of headers
    assert len(log) - before < 20 * 300


def test_requests_that_never_end_hold_memory_for_few_calls_of_a_connection(
    prefill: Service, peer: Http2Peer
) -> None:
    good = [("authorization", f"Bearer {_TOKEN}")]
    # the server's settings have come with the first answer
    peer.wait(peer.call(_DESCRIBE, b"", good), 20)
    before = psutil.Process(prefill.process.pid).memory_info().rss
    part = struct.pack(">BI", 0, 4_000_000) + bytes(3_900_000)
    streams = [peer.begin(_PREFILL, good) for _ in range(5 * _STREAMS)]
    for stream in streams:
        peer.send(stream, part, seconds=10)
    refused = [stream for stream in streams if peer.answer(stream).reset == _REFUSED_STREAM]
    assert len(refused) == 4 * _STREAMS
    grown = psutil.Process(prefill.process.pid).memory_info().rss - before
    assert grown < 2 * _STREAMS * len(part)
    # other connections are not concerned
    with http2_peer(prefill.port) as other:
        assert other.wait(other.call(_DESCRIBE, b"", good), 20).status == 0


def test_an_error_that_repeats_megabytes_of_the_caller_still_arrives(
    prefill: Service, peer: Http2Peer
) -> None:
    from headwise.v1 import prefill_pb2

    good = [("authorization", f"Bearer {_TOKEN}")]
    request = prefill_pb2.PrefillRequest(token_ids=[5, 6])
    request.policy.name = "\u00e9x\n" * 10_000
    answer = peer.wait(peer.call(_PREFILL, request.SerializeToString(), good), 20)
    assert answer.status == 3
    assert len(answer.headers["grpc-message"]) < 4000
    request.policy.name = ""
    request.codec.keys = "y" * 1_000_000
    assert peer.wait(peer.call(_PREFILL, request.SerializeToString(), good), 20).status == 3
    assert max(map(len, prefill.log.read_text().splitlines())) < MAX_MESSAGE + 200


def test_silent_connections_to_the_metrics_cost_few_threads_and_stop_no_scrape(
    prefill: Service,
) -> None:
    process = psutil.Process(prefill.process.pid)
    before = process.num_threads()
    silent = [socket.create_connection(("127.0.0.1", prefill.metrics_port)) for _ in range(200)]
    try:
        assert scrape(prefill.metrics_url)["headwise_serving"] == 1
        assert process.num_threads() < before + 30
        # a connection that asks nothing is closed
        silent[-1].settimeout(30)
        assert silent[-1].recv(1) == b""
    finally:
        for each in silent:
            each.close()


def test_the_metrics_port_has_nothing_but_metrics(prefill: Service) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(prefill.metrics_url + "/../debug", timeout=10)


def test_a_trace_of_an_unknown_caller_begins_no_span(prefill: Service, peer: Http2Peer) -> None:
    parent = [("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]
    assert peer.wait(peer.call(_DESCRIBE, b"", parent), 20).status == _UNAUTHENTICATED

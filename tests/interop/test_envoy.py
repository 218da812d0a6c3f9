"""Envoy in front: gRPC, JSON over HTTP/1.1 and gRPC-Web through one port."""

from __future__ import annotations

import base64
import json
import struct
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from headwise import Client, HeadwiseError
from headwise.v1 import decode_pb2
from tests.conftest import Pair
from tests.interop.envoy import Envoy, running_envoy
from tests.observe import wait_until

pytestmark = pytest.mark.processes

_PROMPT = "The with statement is used to wrap"
_GENERATE = "headwise.v1.DecodeService/Generate"


@pytest.fixture(scope="module")
def envoy(tiny_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Envoy]:
    prefill, decode = tiny_pair
    folder = tmp_path_factory.mktemp("envoy")
    with running_envoy(folder, [decode.port], [prefill.port]) as envoy:
        wait_until(lambda: _serves(envoy), 20, "a healthy replica")
        yield envoy


def _serves(envoy: Envoy) -> bool:
    with Client(envoy.target, retries=False) as client:
        try:
            client.describe(timeout_seconds=2)
        except HeadwiseError:
            return False
    return True


@pytest.fixture(scope="module")
def expected(tiny_pair: Pair) -> str:
    with Client(tiny_pair[1].target) as client:
        return client.generate(_PROMPT, max_tokens=6, ignore_eos=True).text()


def _post(envoy: Envoy, body: bytes, kind: str) -> bytes:
    request = urllib.request.Request(
        f"http://{envoy.target}/{_GENERATE}", body, {"content-type": kind, "accept": kind}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return bytes(answer.read())


def test_our_client_through_envoy_gets_the_same(envoy: Envoy, expected: str) -> None:
    with Client(envoy.target) as client:
        assert client.generate(_PROMPT, max_tokens=6, ignore_eos=True).text() == expected
        with pytest.raises(HeadwiseError) as caught:
            client.generate(_PROMPT, policy="best").text()
    assert caught.value.reason == "UNKNOWN_POLICY"


def test_json_over_http_streams_a_line_a_message(envoy: Envoy, expected: str) -> None:
    request = {"text": _PROMPT, "max_tokens": 6, "ignore_eos": True}
    body = _post(envoy, json.dumps(request).encode(), "application/json")
    *deltas, last = [json.loads(line) for line in body.splitlines() if line]
    assert "".join(one["delta"].get("text", "") for one in deltas) == expected
    assert last["result"]["finish_reason"] == "FINISH_REASON_LENGTH"


def test_a_refusal_as_json_has_its_reason(envoy: Envoy) -> None:
    body = json.dumps({"text": "x y", "policy": {"name": "best"}}).encode()
    with pytest.raises(urllib.error.HTTPError) as caught:
        _post(envoy, body, "application/json")
    with caught.value as error:
        assert error.code == 400
        assert json.loads(error.read())["details"][0]["reason"] == "UNKNOWN_POLICY"


def test_a_browser_speaks_grpc_web(envoy: Envoy, expected: str) -> None:
    request = decode_pb2.GenerateRequest(text=_PROMPT, max_tokens=6, ignore_eos=True)
    payload = request.SerializeToString()
    frame = base64.b64encode(struct.pack(">BI", 0, len(payload)) + payload)
    answer = _decode_parts(_post(envoy, frame, "application/grpc-web-text"))
    text, trailers = "", b""
    while answer:
        flag, length = struct.unpack(">BI", answer[:5])
        message, answer = answer[5 : 5 + length], answer[5 + length :]
        if flag & 0x80:
            trailers = message
        else:
            text += decode_pb2.GenerateResponse.FromString(message).delta.text
    assert text == expected
    assert b"grpc-status:0" in trailers.replace(b" ", b"")


def _decode_parts(text: bytes) -> bytes:
    """base64 whose padding may stand in the middle, after each chunk."""
    return b"".join(base64.b64decode(text[at : at + 4]) for at in range(0, len(text), 4))

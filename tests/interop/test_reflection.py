"""A client that knows nothing of us finds the services by reflection and calls them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from headwise.v1 import decode_pb2, prefill_pb2
from services.demo.processes import Service
from tests.conftest import Pair
from tests.interop.clients import grpcurl

pytestmark = pytest.mark.processes

# calls a method with a message as JSON; gives the messages of the answer
_Curl = Callable[[Service, str, dict[str, object]], list[dict[str, Any]]]


def _buf_curl(target: str, method: str, data: str) -> list[str]:
    buf = shutil.which("buf", path=str(Path(sys.executable).parent)) or shutil.which("buf")
    assert buf is not None, "buf comes with the dev extra: pip install buf-bin"
    url = f"http://{target}/{method}"
    return [buf, "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--data", data, url]


def _grpcurl(target: str, method: str, data: str) -> list[str]:
    return [grpcurl(), "-plaintext", "-d", data, target, method]


@pytest.fixture(params=[_buf_curl, _grpcurl], ids=["buf curl", "grpcurl"])
def curl(request: pytest.FixtureRequest) -> _Curl:
    command = request.param

    def call(service: Service, method: str, message: dict[str, object]) -> list[dict[str, Any]]:
        answer = _run(command(service.target, method, json.dumps(message)))
        assert answer.returncode == 0, answer.stderr
        return _messages(answer.stdout)

    return call


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def _messages(text: str) -> list[dict[str, Any]]:
    """JSON objects one after another."""
    decoder, text, messages = json.JSONDecoder(), text.lstrip(), []
    while text:
        message, end = decoder.raw_decode(text)
        messages.append(message)
        text = text[end:].lstrip()
    return messages


@pytest.mark.parametrize("side", [0, 1])
def test_describe_by_reflection(tiny_pair: Pair, curl: _Curl, side: int) -> None:
    contract = (prefill_pb2, decode_pb2)[side].DESCRIPTOR
    name = next(iter(contract.services_by_name.values())).full_name
    (description,) = curl(tiny_pair[side], f"{name}/Describe", {})
    assert {policy["name"] for policy in description["policies"]} >= {"full", "coverage"}


def test_generate_by_reflection(tiny_pair: Pair, curl: _Curl) -> None:
    request = {"text": "while True:", "maxTokens": 3, "ignoreEos": True}
    answer = curl(tiny_pair[1], "headwise.v1.DecodeService/Generate", request)
    # a name may be spelled tokenIds or token_ids
    *deltas, last = (ParseDict(one, decode_pb2.GenerateResponse()) for one in answer)
    assert sum(len(one.delta.token_ids) for one in deltas) == 3
    assert last.result.finish_reason == decode_pb2.FINISH_REASON_LENGTH


def test_a_cache_is_kept_and_released_by_reflection(tiny_pair: Pair, curl: _Curl) -> None:
    request = {"text": "while True:", "keepForSeconds": 60}
    (kept,) = curl(tiny_pair[1], "headwise.v1.CacheService/KeepCache", request)
    handle = kept["cache"]["handle"]
    curl(tiny_pair[0], "headwise.v1.CacheService/ReleaseLease", {"handle": handle})


def test_grpcurl_lists_what_is_served_and_explains_it(tiny_pair: Pair) -> None:
    target = tiny_pair[1].target
    listed = _run([grpcurl(), "-plaintext", target, "list"]).stdout.split()
    assert {"headwise.v1.DecodeService", "headwise.v1.CacheService"} <= set(listed)
    explained = _run([grpcurl(), "-plaintext", target, "describe", "headwise.v1.Sampling"]).stdout
    assert "optional uint64 seed = 4;" in explained


def test_a_refusal_is_read_in_full(tiny_pair: Pair) -> None:
    data = json.dumps({"text": "x y", "policy": {"name": "best"}})
    command = _grpcurl(tiny_pair[1].target, "headwise.v1.DecodeService/Generate", data)
    refused = _run(command)
    assert refused.returncode != 0
    assert "InvalidArgument" in refused.stderr
    # grpcurl knows google.rpc's details
    assert "UNKNOWN_POLICY" in refused.stderr

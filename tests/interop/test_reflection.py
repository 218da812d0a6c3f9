"""A client that knows nothing of us finds the services by reflection and calls them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from headwise.v1 import decode_pb2, prefill_pb2
from services.demo.processes import Service
from tests.conftest import Pair

pytestmark = pytest.mark.processes


def _curl(service: Service, method: str, request: dict[str, object]) -> list[dict[str, object]]:
    buf = shutil.which("buf", path=str(Path(sys.executable).parent)) or shutil.which("buf")
    assert buf is not None, "buf comes with the dev extra: pip install buf-bin"
    url = f"http://{service.target}/{method}"
    command = [buf, "curl", "--protocol", "grpc", "--http2-prior-knowledge", url]
    command += ["--data", json.dumps(request)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 0, answer.stderr
    decoder, text, messages = json.JSONDecoder(), answer.stdout.lstrip(), []
    while text:
        message, end = decoder.raw_decode(text)
        messages.append(message)
        text = text[end:].lstrip()
    return messages


@pytest.mark.parametrize("side", [0, 1])
def test_describe_by_reflection(tiny_pair: Pair, side: int) -> None:
    contract = (prefill_pb2, decode_pb2)[side].DESCRIPTOR
    name = next(iter(contract.services_by_name.values())).full_name
    (description,) = _curl(tiny_pair[side], f"{name}/Describe", {})
    assert {policy["name"] for policy in description["policies"]} >= {"full", "coverage"}


def test_generate_by_reflection(tiny_pair: Pair) -> None:
    request = {"text": "while True:", "maxTokens": 3, "ignoreEos": True}
    *deltas, last = _curl(tiny_pair[1], "headwise.v1.DecodeService/Generate", request)
    assert sum(len(delta["delta"]["tokenIds"]) for delta in deltas) == 3
    assert last["result"]["finishReason"] == "FINISH_REASON_LENGTH"


def test_a_cache_is_kept_and_released_by_reflection(tiny_pair: Pair) -> None:
    request = {"text": "while True:", "keepForSeconds": 60}
    (kept,) = _curl(tiny_pair[1], "headwise.v1.CacheService/KeepCache", request)
    handle = kept["cache"]["handle"]
    _curl(tiny_pair[0], "headwise.v1.CacheService/ReleaseLease", {"handle": handle})

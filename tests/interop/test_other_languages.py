"""Clients in other languages, from proto/ and docs/wire-format.md alone, get what ours gets."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable

import grpc
import pytest

from headwise import Client
from headwise.v1 import cache_pb2, prefill_pb2, prefill_pb2_grpc
from services.runtime.serving.frames import assemble_cache
from tests.conftest import Pair
from tests.interop.clients import cpp_client, go_client, node_client

pytestmark = pytest.mark.processes

_PROMPT = "The with statement is used to wrap the execution of a block"
_TOKENS = [2 + 7 * n % 500 for n in range(90)]
# from the name of an example to its command and environment
_Example = Callable[[str], tuple[list[str], dict[str, str]]]


def _node(name: str) -> tuple[list[str], dict[str, str]]:
    return node_client(f"{name}.js")


@pytest.fixture(params=[_node, cpp_client, go_client], ids=["node", "c++", "go"])
def generate(request: pytest.FixtureRequest) -> _Example:
    """A language with an example that generates."""
    chosen: _Example = request.param
    return chosen


@pytest.fixture(params=[_node, cpp_client], ids=["node", "c++"])
def prefill(request: pytest.FixtureRequest) -> _Example:
    """A language with an example that reads a cache."""
    chosen: _Example = request.param
    return chosen


def _run(example: _Example, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command, environment = example(name)
    return subprocess.run(
        [*command, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_generate_streams_the_same_text(tiny_pair: Pair, generate: _Example) -> None:
    target = tiny_pair[1].target
    with Client(target) as client:
        expected = client.generate(_PROMPT, max_tokens=12, ignore_eos=True).text()
    ran = _run(generate, "generate", target, _PROMPT, "12")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == expected
    assert "12" in ran.stderr


def test_a_refusal_is_seen_as_one(tiny_pair: Pair, generate: _Example) -> None:
    ran = _run(generate, "generate", tiny_pair[1].target, "", "12")
    assert ran.returncode == 1
    assert "the prompt is empty" in ran.stderr


@pytest.mark.parametrize("policy", ["full", "coverage"])
def test_a_cache_is_checked_and_one_head_of_it_rebuilt(
    tiny_pair: Pair, prefill: _Example, policy: str
) -> None:
    target = tiny_pair[0].target
    request = prefill_pb2.PrefillRequest(token_ids=_TOKENS, policy=cache_pb2.Policy(name=policy))
    with grpc.insecure_channel(target) as channel:
        stream = prefill_pb2_grpc.PrefillServiceStub(channel).Prefill(request, timeout=60)
        cache = assemble_cache(stream)
    expected = list(cache.layers[1].heads())[1]
    ran = _run(prefill, "prefill", target, policy, "1", "1", *map(str, _TOKENS))
    assert ran.returncode == 0, ran.stderr
    head = json.loads(ran.stdout)
    assert head["positions"] == expected.positions.tolist()
    for name in ("keys", "values"):
        rows = getattr(expected, name).contiguous().numpy().tobytes()
        assert hashlib.sha256(bytes.fromhex(head[name])).digest() == hashlib.sha256(rows).digest()
        assert rows


def test_a_stream_that_fails_is_no_cache(tiny_pair: Pair, prefill: _Example) -> None:
    ran = _run(prefill, "prefill", tiny_pair[0].target, "best", "0", "0", "5")
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert "unknown policy" in ran.stderr

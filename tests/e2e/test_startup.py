"""A process that cannot serve says so in a line and ends; one that meets another model refuses."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headwise import Client, HeadwiseError, Refused, Unavailable
from services.demo.processes import Service, running_service
from tests.conftest import running_pair
from tests.observe import wait_until
from tests.tiny_model import save_tiny_model

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same architecture and tokenizer with other weights."""
    return save_tiny_model(tmp_path_factory.mktemp("other-model"), seed=1)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def _end(*arguments: str, **environment: str) -> str:
    """Run a process that must fail at once, check its exit status and return its output."""
    ended = subprocess.run(
        [sys.executable, "-m", "services.cli", *arguments],
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode not in (0, -6, -11)
    assert "Traceback" not in ended.stderr
    return ended.stderr


def _error_line(said: str) -> str:
    (line,) = [line for line in said.splitlines() if line.startswith("Error: ")]
    assert said.rstrip().endswith(line)
    return line


@pytest.mark.parametrize(
    ("model", "advice"), [("no-such-model", "hub id"), ("/no/such/folder", "check the path")]
)
def test_an_unknown_model_is_named_with_advice(model: str, advice: str) -> None:
    line = _error_line(_end("prefill", "--port", "0", "--model", model))
    assert model in line
    assert advice in line


def test_a_bad_flag_is_named() -> None:
    assert "--chunk-token" in _end("prefill", "--chunk-token", "5")
    assert "--port" in _end("decode", "--port", "65536")


def test_an_unknown_variable_is_named() -> None:
    assert "HEADWISE_PROT" in _end("prefill", HEADWISE_PROT="1")


def test_a_bad_value_of_a_variable_is_named() -> None:
    said = _end("decode", HEADWISE_POOL_BYTES="plenty")
    assert "HEADWISE_POOL_BYTES" in said
    assert "plenty" in said


def test_an_unknown_default_policy_is_named(tiny_model: Path) -> None:
    said = _end("prefill", "--port", "0", "--model", str(tiny_model), "--default-policy", "best")
    line = _error_line(said)
    assert "--default-policy" in line
    assert "'best'" in line
    assert "coverage" in line


@pytest.mark.parametrize("flag", ["--port", "--metrics-port"])
def test_a_taken_port_is_named(tiny_model: Path, taken_port: int, flag: str) -> None:
    arguments = ["--port", "0", "--model", str(tiny_model), flag, str(taken_port)]
    line = _error_line(_end("prefill", *arguments))
    assert str(taken_port) in line
    assert flag in line


def test_decode_ends_when_prefill_serves_another_model(tiny_model: Path, other_model: Path) -> None:
    with running_service("prefill", ["--model", str(other_model)]) as prefill:
        target = ["--prefill", prefill.target]
        line = _error_line(_end("decode", "--port", "0", "--model", str(tiny_model), *target))
    assert "model_id" in line or "weights_digest" in line
    assert "--model" in line


def test_a_prefill_replaced_by_another_model_is_refused_per_request(
    tiny_model: Path, other_model: Path
) -> None:
    with running_pair(str(tiny_model)) as (prefill, decode), Client(decode.target) as client:
        client.generate([5, 9, 33], max_tokens=1).text()
        _stop(prefill)
        arguments = ["--model", str(other_model), "--port", str(prefill.port)]
        with running_service("prefill", arguments) as other:
            wait_until(lambda: not isinstance(_failure(client), Unavailable), 20, "a new prefill")
            error = _failure(client)
            assert other.process.poll() is None
        assert isinstance(error, Refused)
        assert error.reason == "FINGERPRINT_MISMATCH"
        assert error.field in ("model_id", "weights_digest")
        # what needs no prefill is still answered
        assert decode.process.poll() is None
        assert client.generate([5], max_tokens=1).result.usage.completion_tokens == 1


def _failure(client: Client) -> HeadwiseError | None:
    try:
        client.generate([5, 9, 33], max_tokens=1).text()
    except HeadwiseError as error:
        return error
    return None


def _stop(service: Service) -> None:
    service.process.terminate()
    service.process.wait(20)

"""`headwise doctor` names each problem with advice, and reports none of services that serve."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner, Result

from services.commands import command_line
from services.doctor.finding import Level
from services.doctor.machine import dtype_finding
from tests.conftest import Pair


def _doctor(*arguments: str) -> Result:
    return CliRunner().invoke(command_line, ["doctor", *arguments], env={"COLUMNS": "220"})


@pytest.fixture
def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@pytest.fixture
def stranger() -> Iterator[str]:
    """The address of a gRPC server that is no Headwise service."""
    server = grpc.server(ThreadPoolExecutor(1))
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield target
    server.stop(0)


@pytest.fixture
def bfloat16_model(tiny_model: Path, tmp_path: Path) -> Path:
    """A model whose configuration names bfloat16; its weights are unchanged."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"dtype": "bfloat16"}
    path.write_text(json.dumps(config))
    return folder


@pytest.mark.processes
def test_a_serving_pair_has_no_problem(tiny_pair: Pair) -> None:
    prefill, decode = tiny_pair
    result = _doctor("--target", prefill.target, "--target", decode.target)
    assert result.exit_code == 0, result.output
    assert "prefill of " in result.output
    assert "decode of " in result.output
    assert result.output.count(", serving") == 2
    assert "same weights, tokenizer and dtype" in result.output
    # nothing was said about this machine
    assert "device" not in result.output


@pytest.mark.processes
def test_a_port_in_use_by_headwise_names_the_service(
    tiny_pair: Pair, tiny_model: Path, free_port: int
) -> None:
    ports = ["--port", str(tiny_pair[1].port), "--port", str(free_port)]
    result = _doctor("--model", str(tiny_model), *ports)
    assert result.exit_code == 0, result.output
    assert "decode of " in result.output
    assert "free on 127.0.0.1" in result.output
    assert "llama, 2 layers" in result.output
    assert f"of {os.cpu_count()} cores" in result.output


def test_a_target_that_does_not_answer_is_a_problem(free_port: int) -> None:
    result = _doctor("--target", f"127.0.0.1:{free_port}")
    assert result.exit_code == 1
    assert "UNAVAILABLE" in result.output
    assert "Check that the service is running" in result.output
    assert "Error: 1 problem found" in result.output


def test_another_server_at_the_target_is_a_problem(stranger: str) -> None:
    result = _doctor("--target", stranger)
    assert result.exit_code == 1
    assert "Another program listens there" in result.output


def test_a_token_file_without_a_token_is_named(tmp_path: Path, stranger: str) -> None:
    (tmp_path / "token").write_text("two words")
    result = _doctor("--target", stranger, "--token-file", str(tmp_path / "token"))
    assert result.exit_code == 2
    assert "--token-file" in result.output
    assert "two words" not in result.output


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("--device", "tpu"), "Give --device cpu or cuda."),
        (("--device", "cuda:99"), "CUDA device"),
        (("--codecs", "int3"), "int3"),
        (("--host", "192.0.2.1"), "no interface of this machine"),
    ],
)
def test_an_unusable_device_codec_or_address_is_a_problem(
    tiny_model: Path, free_port: int, arguments: tuple[str, ...], found: str
) -> None:
    result = _doctor("--model", str(tiny_model), "--port", str(free_port), *arguments)
    assert result.exit_code == 1
    assert found in result.output
    assert "Error: 1 problem found" in result.output


@pytest.mark.parametrize(
    ("config", "found"),
    [(None, "no config.json"), ({"model_type": "gpt2"}, "learned absolute positions")],
)
def test_a_model_that_cannot_be_served_is_a_problem(
    tmp_path: Path, free_port: int, config: dict[str, str] | None, found: str
) -> None:
    if config:
        (tmp_path / "config.json").write_text(json.dumps(config))
    result = _doctor("--model", str(tmp_path), "--port", str(free_port))
    assert result.exit_code == 1
    assert found in " ".join(result.output.split())


def test_a_dtype_that_may_overflow_is_a_warning(bfloat16_model: Path, free_port: int) -> None:
    finding = dtype_finding("float16", "bfloat16")
    assert finding.level is Level.WARNING
    assert "--dtype bfloat16" in finding.advice
    arguments = ["--model", str(bfloat16_model), "--port", str(free_port), "--dtype", "bfloat16"]
    assert "bfloat16, weights stored as bfloat16" in _doctor(*arguments).output

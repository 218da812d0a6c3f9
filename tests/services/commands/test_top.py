"""`headwise top` shows the state of running services, and names those that do not answer."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result
from prometheus_client.samples import Sample

from headwise import Client
from headwise.results import SessionInfo
from services.commands import command_line
from services.demo.processes import Service
from services.top.metrics_page import MetricsPage
from services.top.snapshot import service_snapshot
from services.top.watch import Watch
from tests.conftest import Pair
from tests.observe import scrape, wait_until

processes = pytest.mark.processes
_PROMPT = "A cache of a cache is a cache. " * 20


def _top(*arguments: str) -> Result:
    return CliRunner().invoke(command_line, ["top", *arguments], env={"COLUMNS": "240"})


def _metrics(service: Service) -> str:
    return f"127.0.0.1:{service.metrics_port}"


def _flags(pair: Pair) -> list[str]:
    """Flags for the metrics of both services and the sessions of decode."""
    prefill, decode = pair
    return [
        *("--metrics", _metrics(prefill), "--metrics", _metrics(decode)),
        *("--target", decode.target),
    ]


@pytest.fixture
def session(tiny_pair: Pair) -> Iterator[SessionInfo]:
    """A session that decode keeps during a test."""
    with Client(tiny_pair[1].target) as client:
        options = {"max_tokens": 4, "ignore_eos": True, "session_ttl_seconds": 120.0}
        session_id = client.generate(_PROMPT, **options).result.session_id
        # its last pages are given back a moment after the answer
        wait_until(
            lambda: scrape(tiny_pair[1].metrics_url)["headwise_sequences"] == 0, 5, "the end"
        )
        yield client.sessions.describe(session_id)
        client.sessions.release(session_id)


@processes
def test_once_as_json_agrees_with_metrics_and_sessions(
    tiny_pair: Pair, session: SessionInfo
) -> None:
    result = _top(*_flags(tiny_pair), "--once", "--json", "--every", "0.1")
    assert result.exit_code == 0, result.output
    snapshot: dict[str, list[dict[str, Any]]] = json.loads(result.stdout)
    assert snapshot["problems"] == []
    prefill, decode = snapshot["services"]
    assert (prefill["kind"], decode["kind"]) == ("prefill", "decode")
    assert prefill["model"] == decode["model"] == "tiny-model0"
    assert prefill["serving"] is decode["serving"] is True
    told = scrape(tiny_pair[1].metrics_url)
    assert decode["sessions"] == told["headwise_sessions"] == len(snapshot["sessions"])
    assert decode["resident_bytes"] == (
        told["headwise_kv_resident_bytes{tier=pool}"]
        + told["headwise_kv_resident_bytes{tier=host}"]
    )
    assert decode["dense_equivalent_bytes"] == told["headwise_kv_dense_equivalent_bytes"] > 0
    assert decode["calls_per_second"] == decode["tokens_per_second"] == 0
    assert (decode["running"], decode["queued"]) == (0, 0)
    [shown] = [one for one in snapshot["sessions"] if one["session_id"] == session.session_id]
    assert shown["target"] == tiny_pair[1].target
    assert shown["tokens"] == session.tokens
    assert shown["resident_bytes"] == session.memory.resident_bytes
    assert shown["dense_bytes"] == session.memory.dense_bytes
    assert 0 < shown["expires_in_seconds"] <= session.expires_in_seconds


@processes
def test_once_is_a_table_that_fits_a_terminal(tiny_pair: Pair, session: SessionInfo) -> None:
    command = ["top", *_flags(tiny_pair), "--once", "--every", "0.1"]
    result = CliRunner().invoke(command_line, command, env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines() if line.strip()]
    for service in tiny_pair:
        # the figures are beside the name, the address is below it
        [at] = [n for n, line in enumerate(lines) if line[0] == _metrics(service)]
        assert lines[at - 1][0] == service.name
        assert "serving" not in lines[at - 1]
    [line] = [one for one in lines if one[0] == session.session_id]
    assert line[1:3] == [session.policy, f"{session.tokens}"]


@processes
def test_rates_are_averages_between_two_updates(tiny_pair: Pair) -> None:
    prefill, decode = tiny_pair
    with (
        Client(decode.target) as client,
        Watch([_metrics(prefill), _metrics(decode)], []) as watch,
    ):
        outer = time.monotonic()
        first = watch.snapshot()
        inner = time.monotonic()
        assert {one.tokens_per_second for one in first.services} == {None}
        result = client.generate(_PROMPT, max_tokens=30, ignore_eos=True).result
        inner = time.monotonic() - inner
        looked = {one.kind: one for one in watch.snapshot().services}
        outer = time.monotonic() - outer
    wire, prompt = result.prompt_memory.wire_bytes, result.usage.prompt_tokens - 1
    for rate, done in (
        (looked["decode"].tokens_per_second, 30),
        (looked["decode"].wire_bytes_per_second, wire),
        (looked["decode"].calls_per_second, 1),
        (looked["prefill"].tokens_per_second, prompt),
        (looked["prefill"].wire_bytes_per_second, wire),
    ):
        assert rate is not None
        assert done / outer <= rate <= done / inner
    assert looked["decode"].failures_per_second == 0


def test_a_restarted_process_has_no_rates_at_first() -> None:
    def page(at_seconds: float, started: float, tokens: float) -> MetricsPage:
        values = {
            "headwise_kv_capacity_bytes": 1.0,
            "process_start_time_seconds": started,
            "headwise_generated_tokens_total": tokens,
        }
        labels = {"headwise_kv_capacity_bytes": {"tier": "pool"}}
        samples = [Sample(name, labels.get(name, {}), one) for name, one in values.items()]
        return MetricsPage(at_seconds, samples)

    first, second, anew = page(10.0, 1.0, 100.0), page(12.0, 1.0, 130.0), page(14.0, 13.0, 7.0)
    assert service_snapshot("", second, first).tokens_per_second == 15.0
    assert service_snapshot("", anew, second).tokens_per_second is None


@processes
def test_a_service_that_does_not_answer_is_named_beside_the_others(tiny_pair: Pair) -> None:
    prefill, decode = tiny_pair
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{unused.getsockname()[1]}"
    for flags, said in (
        (("--metrics", nobody), ("Connection refused", "--metrics-port")),
        # gRPC answers there
        (("--metrics", decode.target), ("no metrics there",)),
        (("--target", nobody), ("UNAVAILABLE", "Check that the service is running")),
        (("--target", prefill.target), ("there is no decode", "--metrics")),
    ):
        command = ("--metrics", _metrics(decode), *flags, "--once", "--every", "0.1")
        result = _top(*command)
        assert result.exit_code == 1
        assert result.output.count(_metrics(decode)) == 1
        assert f"{flags[1]}: " in result.output
        assert all(words in result.output for words in said), result.output
        assert "Error: 1 address did not answer" in result.output
        problems = json.loads(_top(*command, "--json").stdout.splitlines()[0])["problems"]
        assert [one["address"] for one in problems] == [flags[1]]


@processes
@pytest.mark.parametrize("form", ["--json", ""])
def test_updates_continue_until_an_interrupt(tiny_pair: Pair, form: str) -> None:
    listed = "headwise_requests_total{code=OK,method=ListSessions}"

    def looks() -> float:
        return scrape(tiny_pair[1].metrics_url).get(listed, 0.0)

    before = looks()
    command = [sys.executable, "-m", "services.cli", "top", *_flags(tiny_pair), "--every", "0.2"]
    process = subprocess.Popen(
        [*command, *([form] if form else [])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "80"},
    )
    try:
        wait_until(lambda: looks() >= before + 3, 60, "three looks")
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, errors) == (0, "")
    if form:
        first, second, *_ = (json.loads(line)["services"][1] for line in output.splitlines())
        assert first["tokens_per_second"] is None
        assert second["tokens_per_second"] is not None
    else:
        # where there is no terminal, it leaves what it saw last
        assert output.count(_metrics(tiny_pair[1])) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--every", "0"), "--every"),
        (("--target", "decode.example:7080", "--token-file", "{token}"), "plain text"),
    ],
)
def test_bad_flags_are_named(tmp_path: Any, arguments: tuple[str, ...], said: str) -> None:
    token = tmp_path / "token"
    token.write_text("secret-token")
    result = _top("--once", *(one.format(token=token) for one in arguments))
    assert result.exit_code == 2
    assert said in result.output
    assert "secret-token" not in result.output

"""An earlier spelling works, warns with the present one, and excludes the present one."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
from collections.abc import Iterator
from typing import Any, NoReturn

import click
import pytest
from click.testing import CliRunner, Result

from headwise.commands.connection_options import ConnectionFlags
from services.commands import command_line
from services.commands.former_names import FORMER_DECODE, FORMER_PREFILL

_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_SAMPLER, _RATIO = "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"
_URL, _TLS_URL = "redis://store:6379", "rediss://store:6379"


@dataclasses.dataclass(frozen=True, slots=True)
class Former:
    """One earlier option with a value, and the present option with the value that it becomes.

    `beside`: arguments that it needs. `both`: the present spelling as arguments or, with a `=` and
    no dash, as a variable; None where both may be given.
    """

    command: str
    name: str
    value: str
    present: str
    expected: object
    both: tuple[str, ...] | None
    beside: tuple[str, ...] = ()

    @property
    def flag(self) -> tuple[str, ...]:
        dashed = self.name.replace("_", "-")
        return (f"--{dashed}",) if self.value == "true" else (f"--{dashed}", self.value)

    @property
    def variable(self) -> dict[str, str]:
        return {f"HEADWISE_{self.name.upper()}": self.value}


def _renamed(command: str, name: str, value: str, present: str, expected: object) -> Former:
    both = (f"--{present.replace('_', '-')}", value)
    return Former(command, name, value, present, expected, both)


def _redis(name: str, value: str, query: str, address: str = _TLS_URL) -> Former:
    both, url = ("--store-redis", f"{address}?{query}"), f"{address}?{query}"
    return Former("prefill", name, value, "store_redis", url, both, ("--store-redis", address))


def _traced(command: str) -> list[Former]:
    endpoint = "http://collector:4317"
    other = f"{_ENDPOINT}=http://other:4317"
    return [
        Former(command, "trace_endpoint", endpoint, _ENDPOINT, endpoint, (other,)),
        Former(command, "trace_ratio", "0.25", _RATIO, "0.25", (f"{_RATIO}=0.5",)),
    ]


ALL = [
    *_traced("prefill"),
    *_traced("decode"),
    _renamed("prefill", "max_queued_requests", "7", "max_queued", 7),
    _renamed("prefill", "outbox_bytes", "2097152", "send_buffer_bytes", 2 << 20),
    _renamed("prefill", "max_keep_seconds", "60", "max_ttl_seconds", 60.0),
    _redis("store_redis_cluster", "true", "cluster=true", _URL),
    _redis("store_redis_ca", "/tls/ca.crt", "ssl_ca_certs=/tls/ca.crt"),
    _redis("store_redis_certificate", "/tls/tls.crt", "ssl_certfile=/tls/tls.crt"),
    _redis("store_redis_key", "/tls/tls.key", "ssl_keyfile=/tls/tls.key"),
    Former(
        "prefill",
        "store_mooncake_metadata",
        "http://meta:8080/metadata",
        "store_mooncake",
        "master:50051?metadata=http://meta:8080/metadata",
        ("--store-mooncake", "master:50051?metadata=http://meta:8080/metadata"),
        ("--store-mooncake", "master:50051"),
    ),
    _renamed("decode", "max_session_seconds", "60", "max_session_ttl_seconds", 60.0),
    _renamed("decode", "max_contexts", "3", "max_resident_caches", 3),
    _renamed("decode", "claim_seconds", "3", "reservation_timeout_seconds", 3.0),
    Former("decode", "captured_steps", "true", "cuda_graphs", "on", ("--cuda-graphs", "off")),
    Former(
        "decode",
        "fused_layers",
        "true",
        "cuda_graphs",
        "compiled",
        ("--cuda-graphs", "off"),
        ("--captured-steps",),
    ),
    Former("decode", "retain_every", "8", "retain_every", 8, None),
]
_IDS = [f"{former.command}-{former.name}" for former in ALL]


def _run(
    monkeypatch: pytest.MonkeyPatch, command: str, *arguments: str, **environment: str
) -> tuple[Result, dict[str, Any]]:
    """The result of the command, its settings, and OpenTelemetry's variables that it sets."""
    found: dict[str, Any] = {}

    def show(_: type, values: dict[str, Any]) -> None:
        standard = {name: os.environ.get(name) for name in (_ENDPOINT, _SAMPLER, _RATIO)}
        found.update(values | standard)

    # the package has the command under the name of its module
    module = importlib.import_module(f"services.commands.{command}")
    monkeypatch.setattr(module, "show_config", show)
    line = [command, "--print-config", *arguments]
    before = dict(os.environ)
    try:
        return CliRunner().invoke(command_line, line, env=environment), found
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_the_table_has_every_earlier_option() -> None:
    for command, formers in (("prefill", FORMER_PREFILL), ("decode", FORMER_DECODE)):
        names = {name for former in formers for name in former.names}
        assert {former.name for former in ALL if former.command == command} == names


@pytest.mark.parametrize("former", ALL, ids=_IDS)
@pytest.mark.parametrize("as_variable", [False, True], ids=["flag", "variable"])
def test_an_earlier_option_works_and_warns_with_the_present_one(
    monkeypatch: pytest.MonkeyPatch, former: Former, as_variable: bool
) -> None:
    arguments = former.beside if as_variable else (*former.beside, *former.flag)
    environment = former.variable if as_variable else {}
    result, found = _run(monkeypatch, former.command, *arguments, **environment)
    assert result.exit_code == 0, result.output
    assert found[former.present] == former.expected
    assert result.stdout == ""
    spelling = next(iter(former.variable)) if as_variable else former.flag[0]
    assert "Warning: " in result.stderr
    assert spelling in result.stderr
    assert "next release" in result.stderr
    if former.both:
        assert former.both[0].partition("=")[0] in result.stderr


@pytest.mark.parametrize(
    "former", [former for former in ALL if former.both], ids=lambda former: former.name
)
def test_two_spellings_at_once_are_an_error(
    monkeypatch: pytest.MonkeyPatch, former: Former
) -> None:
    assert former.both
    is_variable = not former.both[0].startswith("--")
    environment = dict([former.both[0].split("=", 1)]) if is_variable else {}
    arguments = former.flag if is_variable else (*former.flag, *former.both)
    result, found = _run(monkeypatch, former.command, *arguments, **environment)
    assert result.exit_code == 2, result.output
    assert "alone" in result.output
    assert not found


def test_a_ratio_chooses_the_sampler_too(monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = _run(monkeypatch, "decode", "--trace-ratio", "0.5")
    assert found[_SAMPLER] == "parentbased_traceidratio"


def test_fused_layers_without_captured_steps_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert _run(monkeypatch, "decode", "--fused-layers")[1]["cuda_graphs"] == "off"


def test_a_bad_value_names_the_earlier_option(monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = _run(monkeypatch, "prefill", "--outbox-bytes", "1")
    assert result.exit_code == 2
    assert "--outbox-bytes" in result.output


def test_the_origin_names_the_earlier_option() -> None:
    result = CliRunner().invoke(command_line, ["decode", "--print-config", "--max-contexts", "3"])
    (line,) = [line for line in result.stdout.splitlines() if "--max-resident-caches" in line]
    assert line.split() == ["--max-resident-caches", "3", "(--max-contexts)"]


@pytest.mark.parametrize("command", ["prefill", "decode"])
def test_help_shows_no_earlier_option(command: str) -> None:
    words = CliRunner().invoke(command_line, [command, "--help"]).output.split()
    for former in ALL:
        assert former.flag[0] not in words


class _Recorder:
    """A client whose first call ends the command, with the arguments of the call."""

    def __init__(self) -> None:
        self.caches = self

    def keep(self, *_: object, **options: object) -> NoReturn:
        raise click.ClickException(f"TTL {options['ttl_seconds']}")

    def renew(self, _: str, seconds: float) -> NoReturn:
        raise click.ClickException(f"TTL {seconds}")

    def generate(self, *_: object, **options: object) -> NoReturn:
        raise click.ClickException(f"TTL {options['session_ttl_seconds']}")


@pytest.mark.parametrize(
    ("command", "former", "present"),
    [
        ("cache keep -", "--for", "--ttl"),
        ("cache renew handle", "--for", "--ttl"),
        ("generate x", "--keep", "--session-ttl"),
    ],
)
def test_the_flags_of_ttl_have_earlier_spellings(
    monkeypatch: pytest.MonkeyPatch, command: str, former: str, present: str
) -> None:
    @contextlib.contextmanager
    def client(_: ConnectionFlags) -> Iterator[_Recorder]:
        yield _Recorder()

    monkeypatch.setattr(ConnectionFlags, "client", client)
    earlier = CliRunner().invoke(command_line, [*command.split(), former, "7"])
    assert "Error: TTL 7.0" in earlier.output
    assert f"use {present} instead" in earlier.stderr
    present_spelling = CliRunner().invoke(command_line, [*command.split(), present, "7"])
    assert "Error: TTL 7.0" in present_spelling.output
    assert "Warning" not in present_spelling.output
    both = CliRunner().invoke(command_line, [*command.split(), former, "7", present, "7"])
    assert both.exit_code == 2
    assert f"give {present} alone" in both.output

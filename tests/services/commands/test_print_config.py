"""`--print-config` shows the value and origin of each setting once, and no password."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner

from services.commands import command_line
from services.commands.print_config import without_password
from services.decode.options import DecodeOptions
from services.prefill.options import PrefillOptions
from services.runtime.process.configuration import settings_of

_LINE = re.compile(r"(--[\w-]+) +(.*)  \((.*)\)")


def _printed(command: str, *arguments: str, **environment: str) -> dict[str, tuple[object, str]]:
    """Value and origin of every setting, by flag."""
    line = [command, "--print-config", *arguments]
    result = CliRunner().invoke(command_line, line, env=environment)
    assert result.exit_code == 0, result.output
    matches = [_LINE.fullmatch(line) for line in result.output.splitlines()]
    found = [match.groups() for match in matches if match]
    assert len(found) == len(matches)
    return {flag: (json.loads(value), origin) for flag, value, origin in found}


@pytest.mark.parametrize(
    ("command", "kind"), [("prefill", PrefillOptions), ("decode", DecodeOptions)]
)
def test_every_setting_is_shown_with_its_default(command: str, kind: type) -> None:
    printed = _printed(command)
    names = {f"--{name.replace('_', '-')}": field for name, _, field in settings_of(kind)}
    assert printed.keys() == names.keys()
    for flag, field in names.items():
        value, origin = printed[flag]
        assert origin == "default"
        assert str(value) == str(field.default)


def test_the_origin_is_flag_variable_or_default() -> None:
    environment = {"HEADWISE_PORT": "7", "HEADWISE_MODEL": "mine", "HEADWISE_STORE_PROMPTS": "1"}
    printed = _printed("prefill", "--port", "8", "--no-store-prompts", **environment)
    assert printed["--port"] == (8, "flag")
    assert printed["--model"] == ("mine", "HEADWISE_MODEL")
    assert printed["--store-prompts"] == (False, "flag")
    assert printed["--host"] == ("127.0.0.1", "default")


def test_a_bad_value_is_named() -> None:
    result = CliRunner().invoke(command_line, ["decode", "--print-config", "--port", "x"])
    assert result.exit_code == 2
    assert "--port" in result.output


@pytest.mark.parametrize(
    "address",
    [
        "redis://user:hunter2@store:6379",
        "redis://:hunter2@store:6379/0",
        "redis://:hun/hunter2@store:6379",
        "redis://:x@hunter2@store:6379",
        "redis://:x?hunter2@store:6379",
        "rediss://store:6379?password=hunter2",
        "redis://user:x@store:6379?password=hunter2",
        "redis://store:6379?password=x@hunter2",
        "user:hunter2@store:6379",
    ],
)
def test_a_password_in_an_address_is_hidden(address: str) -> None:
    result = CliRunner().invoke(
        command_line, ["prefill", "--print-config"], env={"HEADWISE_STORE_REDIS": address}
    )
    assert result.exit_code == 0
    assert "hunter2" not in result.output
    assert "***" in result.output


@pytest.mark.parametrize(
    "text", ["", "redis://store:6379", "store:6379", "/data/me@host/model", "organisation/model"]
)
def test_text_without_a_password_is_shown_unchanged(text: str) -> None:
    assert without_password(text) == text

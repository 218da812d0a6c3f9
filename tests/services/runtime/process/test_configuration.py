"""A flag overrides a variable, and a bad or unknown name or value is refused by name."""

from __future__ import annotations

import dataclasses
import pathlib
import re

import click
import pytest
from click.testing import CliRunner, Result

from headwise.commands.cache import cache
from services.commands import command_line
from services.commands.variables import KNOWN_VARIABLES
from services.decode.options import DecodeOptions
from services.prefill.options import PrefillOptions
from services.runtime.process.configuration import (
    build,
    options_of,
    refuse_unknown_variables,
    setting,
    settings_of,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    depth: int = setting(3, "Depth.", minimum=1, maximum=9)
    folder: pathlib.Path = setting(pathlib.Path("here"), "Folder.")


@dataclasses.dataclass(frozen=True, slots=True)
class Complete:
    part: Part
    colour: str = setting("red", "Colour.", choices=("red", "blue"))
    share: float = setting(0.5, "Share.", minimum=0, maximum=1)
    loud: bool = setting(False, "Loud.")


def _run(*arguments: str, **environment: str) -> tuple[Result, Complete | None]:
    built: list[Complete] = []

    @click.command()
    @options_of(Complete)
    def command(**values: object) -> None:
        built.append(build(Complete, values))

    result = CliRunner().invoke(command, arguments, env=environment)
    return result, built[0] if built else None


def test_defaults() -> None:
    assert _run()[1] == Complete(Part(3, pathlib.Path("here")), "red", 0.5, False)


def test_flag_over_environment_over_default() -> None:
    environment = {"HEADWISE_DEPTH": "7", "HEADWISE_COLOUR": "blue", "HEADWISE_LOUD": "true"}
    _, complete = _run("--depth", "8", "--folder", "there", **environment)
    assert complete == Complete(Part(8, pathlib.Path("there")), "blue", 0.5, True)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--depth", "0"), "--depth"),
        (("--depth", "many"), "--depth"),
        (("--share", "1.5"), "--share"),
        (("--colour", "green"), "--colour"),
        (("--heigth", "1"), "--heigth"),
    ],
)
def test_a_bad_flag_is_named(arguments: tuple[str, ...], named: str) -> None:
    result, complete = _run(*arguments)
    assert result.exit_code == 2
    assert named in result.output
    assert complete is None


def test_a_bad_variable_is_named() -> None:
    result, _ = _run(HEADWISE_SHARE="lots")
    assert result.exit_code == 2
    assert "HEADWISE_SHARE" in result.output
    assert "lots" in result.output


def test_an_unknown_variable_is_named_and_other_programs_variables_are_ignored() -> None:
    refuse_unknown_variables({"PATH": "x", "HEADWISE_DEPTH": "1"}, {"HEADWISE_DEPTH"})
    with pytest.raises(click.UsageError, match="HEADWISE_DEPHT"):
        refuse_unknown_variables({"HEADWISE_DEPHT": "1"}, {"HEADWISE_DEPTH"})


@pytest.mark.parametrize("kind", [PrefillOptions, DecodeOptions])
def test_every_setting_is_described_known_and_has_one_name(kind: type) -> None:
    settings = list(settings_of(kind))
    assert len({name for name, _, _ in settings}) == len(settings)
    for name, _, field in settings:
        assert field.metadata["description"].endswith(".")
        assert f"HEADWISE_{name.upper()}" in KNOWN_VARIABLES


_COMMANDS = [command_line, cache, *command_line.commands.values(), *cache.commands.values()]


@pytest.mark.parametrize("command", _COMMANDS, ids=lambda command: str(command.name))
def test_help_is_complete_sentences(command: click.Command) -> None:
    result = CliRunner().invoke(command, ["--help"])
    assert result.exit_code == 0
    assert command.help
    assert command.help.strip().endswith(".")
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            assert re.search(r"\w{3}.*\.(  \[.*\])?$", str(option.help)), option.opts
            assert str(option.help)[0].isupper()

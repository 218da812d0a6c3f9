"""A configuration file gives values below flags and variables, and is refused by name."""

from __future__ import annotations

import dataclasses
import pathlib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from services.commands import command_line
from services.runtime.process.configuration import build, options_of, setting
from services.runtime.process.configuration_file import config_option


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    depth: int = setting(3, "Depth.", minimum=1, maximum=9)
    folder: pathlib.Path = setting(pathlib.Path("here"), "Folder.")


@dataclasses.dataclass(frozen=True, slots=True)
class Complete:
    part: Part
    graphs: str = setting("off", "Graphs.", choices=("off", "on"))
    share: float = setting(0.5, "Share.", minimum=0, maximum=1)
    loud: bool = setting(False, "Loud.")


_DEFAULT = Complete(Part())
_WRITTEN = Complete(Part(7, pathlib.Path("there")), "on", 1.0, True)
_TEXTS = {
    "a.toml": 'depth = 7\nfolder = "there"\ngraphs = "on"\nshare = 1\nloud = true\n',
    "a.yaml": "depth: 7\nfolder: there\ngraphs: on\nshare: 1\nloud: true\n",
    "a.yml": "depth: 7\nfolder: 'there'\ngraphs: 'on'\nshare: 1.0\nloud: true\n",
}


def _run(*arguments: str, **environment: str) -> tuple[Result, Complete | None]:
    built: list[Complete] = []

    @click.command()
    @config_option(Complete)
    @options_of(Complete)
    def command(**values: object) -> None:
        built.append(build(Complete, values))

    result = CliRunner().invoke(command, arguments, env=environment)
    return result, built[0] if built else None


def _file(folder: Path, text: str, name: str = "a.toml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", _TEXTS)
def test_both_formats_are_read(tmp_path: Path, name: str) -> None:
    result, complete = _run("--config", _file(tmp_path, _TEXTS[name], name))
    assert complete == _WRITTEN, result.output


def test_the_variable_names_a_file_too(tmp_path: Path) -> None:
    file = _file(tmp_path, _TEXTS["a.toml"])
    assert _run(HEADWISE_CONFIG=file)[1] == _WRITTEN
    other = _file(tmp_path, "depth = 4", "b.toml")
    assert _run("--config", other, HEADWISE_CONFIG=file)[1] == Complete(Part(4))


@pytest.mark.parametrize(("name", "text"), [("a.toml", ""), ("a.yaml", ""), ("a.yaml", "# none")])
def test_an_empty_file_leaves_the_defaults(tmp_path: Path, name: str, text: str) -> None:
    assert _run("--config", _file(tmp_path, text, name))[1] == _DEFAULT


def test_flag_over_variable_over_file_over_default(tmp_path: Path) -> None:
    file = _file(tmp_path, 'depth = 7\nshare = 0.1\ngraphs = "on"')
    environment = {"HEADWISE_DEPTH": "8", "HEADWISE_SHARE": "0.2"}
    _, complete = _run("--depth", "9", "--config", file, **environment)
    assert complete == Complete(Part(9), "on", 0.2, False)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.toml", "dephth = 1", "unknown name dephth"),
        ("a.yaml", "dephth: 1", "unknown name dephth"),
        ("a.toml", "[part]\ndepth = 1", "unknown name part"),
        ("a.toml", 'depth = "7"', "depth: '7' is not a whole number"),
        ("a.yaml", "depth: true", "depth: True is not a whole number"),
        ("a.yaml", "depth: 1.5", "depth: 1.5 is not a whole number"),
        ("a.toml", "loud = 1", "loud: 1 is not true or false"),
        ("a.yaml", "loud: yes", "loud: 'yes' is not true or false"),
        ("a.toml", "folder = 1", "folder: 1 is not a path"),
        ("a.toml", "depth = 10", "depth: 10 is not in the range"),
        ("a.toml", "share = -0.5", "share: -0.5 is not in the range"),
        ("a.toml", 'graphs = "auto"', "graphs: 'auto' is not one of"),
        ("a.toml", "depth =", "no TOML"),
        ("a.toml", "depth = 1\ndepth = 2", "no TOML"),
        ("a.yaml", "depth: [", "no YAML"),
        ("a.yaml", "depth: 1\ndepth: 2", "depth occurs twice"),
        ("a.yaml", "- depth", "expected names"),
        ("a.yaml", "? [a]\n: 1", "a.yaml"),
        ("a.json", "{}", "ends in .toml, .yaml, .yml"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, name: str, text: str, reason: str) -> None:
    file = _file(tmp_path, text, name)
    result, complete = _run("--config", file)
    assert result.exit_code == 2, result.output
    assert complete is None
    message = " ".join(result.output.split())
    assert reason in message
    assert file in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    file = str(tmp_path / "none.toml")
    result, _ = _run("--config", file)
    assert result.exit_code == 2
    assert f"{file}: No such file" in result.output


def test_the_origin_of_a_value_is_its_file(tmp_path: Path) -> None:
    file = _file(tmp_path, "max_queued = 5\nport = 7000")
    line = ["decode", "--print-config", "--config", file, "--port", "7001"]
    shown = {
        words[0]: words[1:]
        for words in map(str.split, CliRunner().invoke(command_line, line).output.splitlines())
    }
    assert shown["--max-queued"] == ["5", "(file", f"{file})"]
    assert shown["--port"] == ["7001", "(flag)"]

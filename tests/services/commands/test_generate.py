"""`headwise generate` writes the answer to standard output and figures to standard error."""

from __future__ import annotations

import dataclasses
import json
import re

import click
import pytest
from click.testing import CliRunner
from click.testing import Result as Ended

from headwise import Client, Message, Policy, Result, Sampling
from headwise.commands.parameters import parse_parameters
from services.commands import command_line
from tests.conftest import Pair

_PROMPT = "The with statement is used to wrap the execution of a block. " * 4


def _generate(target: str, *arguments: str, stdin: str = "") -> Ended:
    command = ["generate", "--target", target, *arguments]
    return CliRunner().invoke(command_line, command, input=stdin, env={"COLUMNS": "200"})


@pytest.mark.processes
def test_standard_output_has_the_answer_alone(tiny_pair: Pair) -> None:
    target = tiny_pair[1].target
    with Client(target) as client:
        expected = client.generate(_PROMPT, policy="full", max_tokens=8).text()
    result = _generate(target, _PROMPT, "--policy", "full", "--max-tokens", "8", "--heads")
    assert result.exit_code == 0
    assert result.stdout == expected + "\n"
    assert "rows kept" in result.stderr
    assert "100.0%" in result.stderr


@pytest.mark.processes
def test_every_option_reaches_the_service(tiny_pair: Pair) -> None:
    target = tiny_pair[1].target
    with Client(target) as client:
        expected = client.generate(
            [Message("user", _PROMPT)],
            policy=Policy("coverage", {"recovery": 0.5}),
            sampling=Sampling(1.5, top_k=40, top_p=0.9, seed=4),
            max_tokens=9,
            stop=["zzz"],
        ).text()
    options = "--chat --policy coverage -p recovery=0.5 --temperature 1.5 --top-k 40 --top-p 0.9"
    options += " --seed 4 --max-tokens 9 --stop zzz --timeout 60"
    result = _generate(target, "-", *options.split(), stdin=_PROMPT)
    assert result.exit_code == 0
    assert result.stdout == expected + "\n"
    assert "coverage" in result.stderr


@pytest.mark.processes
def test_quiet_prints_the_answer_alone(tiny_pair: Pair) -> None:
    result = _generate(tiny_pair[1].target, _PROMPT, "--quiet", "--session-ttl", "5")
    assert result.exit_code == 0
    assert result.stdout.strip()
    assert result.stderr == ""


@pytest.mark.processes
def test_json_has_the_text_and_every_figure(tiny_pair: Pair) -> None:
    target = tiny_pair[1].target
    with Client(target) as client:
        expected = client.generate(_PROMPT, max_tokens=5, session_ttl_seconds=5, n=2).results
    result = _generate(target, _PROMPT, "--json", "--session-ttl", "5", "--max-tokens", "5", "-n2")
    first, second = (json.loads(line) for line in result.stdout.splitlines())
    assert (first["text"], second["text"]) == (expected[0].text, expected[1].text)
    assert first.keys() == {field.name for field in dataclasses.fields(Result)}
    assert first["session_id"]
    assert first["usage"] == dataclasses.asdict(expected[0].usage)
    assert result.stderr == ""


@pytest.mark.processes
def test_no_share_of_a_dense_cache_above_150_percent_is_shown(tiny_pair: Pair) -> None:
    result = _generate(tiny_pair[1].target, "two words", "--max-tokens", "1")
    shares = re.findall(r"\((\d+)%\)", result.stderr)
    assert all(int(share) <= 150 for share in shares)
    assert "resident in decode" in result.stderr


@pytest.mark.processes
def test_a_refusal_is_one_line_with_its_reason(tiny_pair: Pair) -> None:
    result = _generate(tiny_pair[1].target, "x y", "--policy", "best")
    assert result.exit_code == 1
    assert result.output.startswith("Error: unknown policy 'best'")
    assert "UNKNOWN_POLICY" in result.output


def test_an_unreachable_service_is_one_line() -> None:
    result = _generate("127.0.0.1:1", "x", "--timeout", "5")
    assert result.exit_code == 1
    assert "UNAVAILABLE" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("option", [("--max-tokens", "-1"), ("--top-k", "-1"), ("--seed", "-1")])
def test_a_number_below_its_bound_names_the_option(option: tuple[str, str]) -> None:
    result = _generate("127.0.0.1:1", "x", *option)
    assert result.exit_code == 2
    assert option[0] in result.output


def test_parameters_are_json_values() -> None:
    parsed = parse_parameters(("recovery=0.9", "windows=[8,16]", "strict=true", 'x="a=b"'))
    assert parsed == {"recovery": 0.9, "windows": [8, 16], "strict": True, "x": "a=b"}


@pytest.mark.parametrize("pair", ["recovery", "recovery=", "=1", "recovery=high", "strict=True"])
def test_a_malformed_parameter_is_named(pair: str) -> None:
    with pytest.raises(click.BadParameter, match="name=value"):
        parse_parameters((pair,))

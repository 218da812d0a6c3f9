"""`headwise tune` finds a setting within the bound, and prints the flags that use it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from services.commands import command_line

_LINE = re.compile(r"KL (\S+)  bytes (\S+)  (\S+)")


def run(model: Path, cache: Path, *more: str) -> tuple[int, str]:
    sizes = ["--context", "128", "--fed", "8", "--passages", "2", "--model-cache", str(cache)]
    result = CliRunner().invoke(command_line, ["tune", "--model", str(model), *sizes, *more])
    return result.exit_code, result.output


@pytest.mark.parametrize(("bound", "most"), [("--max-kl", 0.3), ("--max-bytes", 0.5)])
def test_the_setting_found_is_within_the_bound(
    tiny_model: Path, tmp_path: Path, bound: str, most: float
) -> None:
    more = ["--policy", "snapkv:retrieval_ratio=.25", bound, str(most)]
    code, output = run(tiny_model, tmp_path, *more)
    assert code == 0, output
    *tried, (kl, size, name) = _LINE.findall(output)
    assert float(kl if bound == "--max-kl" else size) <= most
    assert (kl, size, name) in tried
    assert re.search(
        r"headwise generate --policy snapkv -p retrieval_ratio=0.25 -p budget=", output
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "either --max-kl or --max-bytes"),
        (["--max-kl", ".1", "--max-bytes", ".5"], "either --max-kl or --max-bytes"),
        (["--max-kl", ".1", "--policy", "full"], "neither recovery nor budget"),
        (["--max-kl", ".1", "--policy", "h3o"], "h3o"),
        (["--max-bytes", "0.0001"], "within the bound"),
    ],
)
def test_a_search_without_a_result_fails(
    tiny_model: Path, tmp_path: Path, more: list[str], said: str
) -> None:
    code, output = run(tiny_model, tmp_path, *more)
    assert code != 0
    assert said in output

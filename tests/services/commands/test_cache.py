"""`headwise cache` prints a handle, with which a stored cache is used, renewed and released."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from headwise import Client
from services.commands import command_line
from tests.conftest import Pair

pytestmark = pytest.mark.processes

# a question then begins with a token of its own
_DOCUMENT = ("The with statement is used to wrap the execution of a block. " * 9).strip()


def _run(pair: Pair, command: str, *arguments: str) -> Result:
    line = [*command.split(), "--target", pair[1].target, *arguments]
    return CliRunner().invoke(command_line, line, env={"COLUMNS": "200"})


def test_a_stored_document_is_used_renewed_and_released(tiny_pair: Pair, tmp_path: Path) -> None:
    file = tmp_path / "document.txt"
    file.write_text(_DOCUMENT)
    kept = _run(tiny_pair, "cache keep", str(file), "--ttl", "60")
    assert kept.exit_code == 0, kept.output
    handle = kept.stdout.strip()
    assert "policy full, kept for" in kept.stderr
    asked = _run(tiny_pair, "generate", " And then?", "--cache", handle, "--max-tokens", "6")
    with Client(tiny_pair[1].target) as client:
        whole = client.generate(f"{_DOCUMENT} And then?", policy="full", max_tokens=6).text()
    assert asked.stdout == whole + "\n"
    assert "kept for" in _run(tiny_pair, "cache renew", handle, "--ttl", "600").stdout
    assert "kept for" in _run(tiny_pair, "cache show", handle).stdout
    assert _run(tiny_pair, "cache release", handle).exit_code == 0
    gone = _run(tiny_pair, "cache show", handle)
    assert gone.exit_code == 1
    assert "LEASE_RELEASED" in gone.stderr

"""No traceback from anything that a person can type or pipe, in real processes of a shell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Pair

pytestmark = pytest.mark.processes

_MISTAKES = {
    # command line with $T for the target: exit status, and what the one line says
    "an argument that is not UTF-8": ("generate $'caf\\xff' --target $T", 2, "PROMPT"),
    "a stop text that is not UTF-8": ("generate x --stop $'\\xff' --target $T", 2, "--stop"),
    "a session that is not UTF-8": ("generate x --session $'\\xff' --target $T", 2, "--session"),
    "a policy that is not UTF-8": ("generate x --policy $'\\xff' --target $T", 1, "UTF-8"),
    "a tenant that is not ASCII": ("generate x --tenant caf\u00e9 --target $T", 2, "--tenant"),
    "a handle that is not UTF-8": ("cache show $'\\xff' --target $T", 1, "UTF-8"),
    "input that is not UTF-8": ("printf 'caf\\xff' | H generate - --target $T", 1, "no UTF-8 text"),
    "UTF-16 input": ("printf '\\xff\\xfea\\0' | H generate - --target $T", 1, "iconv -f UTF-16"),
    "closed input": ("generate - --target $T <&-", 1, "standard input is closed"),
    "empty input": ("generate - --target $T </dev/null", 1, "the prompt is empty"),
    "an empty prompt": ("generate '' --target $T", 1, "the prompt is empty"),
    "a UTF-16 document": ("cache keep $D/utf16 --target $T", 1, "iconv -f UTF-16"),
    "a UTF-32 document": ("cache keep $D/utf32 --target $T", 1, "iconv -f UTF-32"),
    "a binary document": ("cache keep $D/binary --target $T", 1, "no UTF-8 text"),
    "no such document": ("cache keep /no/document --target $T", 1, "/no/document"),
    "a folder as document": ("cache keep $D --target $T", 1, "directory"),
    "no answers": ("generate x -n 0 --target $T", 2, "--answers"),
    "too many answers": ("generate x -n 4000000000 --target $T", 1, "sampling.n"),
    "an endless temperature": ("generate x --temperature inf --target $T", 1, "temperature"),
    "a temperature that is none": ("generate x --temperature nan --target $T", 1, "temperature"),
    "a time limit that is none": ("generate x --timeout nan --target $T", 2, "--timeout"),
    "an endless time limit": ("generate x --timeout inf --target $T", 2, "--timeout"),
    "no time": ("generate x --timeout 0 --target $T", 2, "--timeout"),
    "a TTL that is none": ("generate x --session-ttl nan --target $T", 2, "--session-ttl"),
    "a negative TTL": ("cache keep $D/text --ttl -1 --target $T", 2, "--ttl"),
    "a parameter that is no number": ("generate x -p budget=NaN --target $T", 2, "budget"),
    "a parameter of great depth": (
        "generate x -p budget=$(printf '[%.0s' {1..100000}) --target $T", 2, "budget"
    ),
    "an empty token file": ("generate x --token-file /dev/null --target $T", 2, "--token-file"),
    "a binary token file": ("generate x --token-file $D/binary --target $T", 2, "--token-file"),
    "authorities that are none": ("generate x --tls-ca $D/text --target $T", 2, "--tls"),
    "a target with http": ("generate x --target http://$T", 2, "no http://"),
    "a target without a port": ("generate x --target localhost", 2, "port is missing"),
    "a target that is not UTF-8": ("generate x --target $'\\xff:1'", 2, "--target"),
    "a metrics address that is none": ("top --once --metrics 'a b'", 1, "1 address"),
    "a target of top with http": ("top --once --target http://$T", 2, "no http://"),
    "a target of doctor with http": ("doctor --target http://$T", 2, "no http://"),
    "a full disk": ("generate hello --target $T >/dev/full", 1, "standard output cannot"),
    "a full disk for help": ("--help >/dev/full", 1, "standard output cannot"),
    "a full disk for a handle": ("cache keep $D/text --target $T >/dev/full", 1, "standard output"),
    "a cache that is a text": ("inspect $D/text", 1, "text"),
    "a cache that is empty": ("inspect /dev/null", 1, "/dev/null"),
    "an unknown command": ("generat x", 2, "No such command"),
    "a misspelt variable": ("HEADWISE_TARGT=$T H generate x", 2, "HEADWISE_TARGT"),
    "a variable with http": ("HEADWISE_TARGET=http://$T H generate x", 2, "no http://"),
}  # fmt: skip
_NO_MISTAKES = {
    "an accent in the C locale": "LC_ALL=C H generate caf\u00e9 --target $T",
    "an accent in ASCII": "PYTHONIOENCODING=ascii H generate caf\u00e9 --target $T",
    "accents through a pipe": "printf 'caf\\xc3\\xa9' | LC_ALL=C H generate - --target $T",
    "a reader that leaves": "generate hello --target $T | head -c 0",
    "a closed output": "generate hello --target $T >&-",
    "closed figures": "generate hello --target $T 2>&-",
    "a target by its variable": "HEADWISE_TARGET=$T H generate hello",
    "a target of top by its variable": "HEADWISE_TARGET=$T H top --once",
    "zero bytes": "printf 'a\\0b' | H generate - --target $T",
    "standard input as a document": "cache keep - --target $T <$D/text",
}


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    (folder / "text").write_text("one two three")
    (folder / "utf16").write_text("one two three", encoding="utf-16")
    (folder / "utf32").write_text("one two three", encoding="utf-32")
    (folder / "marked").write_text("one two three", encoding="utf-8-sig")
    (folder / "binary").write_bytes(bytes(range(256)))
    return folder


def _type(line: str, pair: Pair, documents: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which H is the command; a line without it is its arguments."""
    typed = line if " H " in f" {line}" else f"H {line}"
    script = f'H() {{ "{sys.executable}" -m services.cli "$@"; }}\n{typed}'
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", script],
        env=os.environ | {"T": pair[1].target, "D": str(documents), "COLUMNS": "200"},
        stdin=subprocess.DEVNULL if "<" not in line and "|" not in line else None,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("name", _MISTAKES)
def test_a_mistake_is_one_line(name: str, tiny_pair: Pair, documents: Path) -> None:
    line, status, says = _MISTAKES[name]
    ended = _type(line, tiny_pair, documents)
    assert ended.returncode == status, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr
    told = ended.stderr.rstrip().splitlines()[-1]
    assert told.startswith("Error: "), ended.stderr
    assert says in told


@pytest.mark.parametrize("name", _NO_MISTAKES)
def test_unusual_but_valid_input_works(name: str, tiny_pair: Pair, documents: Path) -> None:
    ended = _type(_NO_MISTAKES[name], tiny_pair, documents)
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr
    # 141 and 1: the pipe was closed
    assert ended.returncode in ((0, 1, 141) if "head" in _NO_MISTAKES[name] else (0,)), ended.stderr


def test_a_byte_order_mark_is_no_part_of_a_document(tiny_pair: Pair, documents: Path) -> None:
    told = [
        _type(f"cache keep $D/{name} --target $T", tiny_pair, documents).stderr.split()[0]
        for name in ("text", "marked")
    ]
    assert told[0] == told[1]

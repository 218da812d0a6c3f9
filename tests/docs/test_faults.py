"""The page of faults names tests that exist, and says so where there are none."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
# those of the survey, by number, and what was read since
_FAULTS = range(1, 18)


def _rows(page: str) -> list[list[str]]:
    """The cells of each row of the page's one table, without its head."""
    lines = [line for line in page.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def _missing(named: list[tuple[str, str]]) -> list[str]:
    return [f"{file}::{name}" for file, name in named if name not in _functions(_ROOT / file)]


def _functions(file: Path) -> set[str]:
    """Names of the test functions of a module, which is read and not imported."""
    if not file.is_file():
        return set()
    body = ast.parse(file.read_text()).body
    return {node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.fixture(scope="module")
def rows() -> list[list[str]]:
    return _rows((_ROOT / "docs" / "faults.md").read_text())


def test_every_fault_has_a_row(rows: list[list[str]]) -> None:
    assert {int(row[0]) for row in rows} == set(_FAULTS)
    assert {len(row) for row in rows} == {4}


def test_every_named_test_exists(rows: list[list[str]]) -> None:
    assert _missing([named for row in rows for named in _NAMED.findall(row[3])]) == []


def test_a_row_names_a_test_or_says_that_there_is_none(rows: list[list[str]]) -> None:
    for number, fault, _, tests in rows:
        assert _NAMED.search(tests) or tests.startswith("none yet"), f"{number}: {fault}"
        # a name in another form would go unchecked
        assert "test_" not in _NAMED.sub("", tests), f"{number}: {fault}"


def test_a_test_that_does_not_exist_is_found() -> None:
    named = [
        ("tests/docs/test_faults.py", "test_every_fault_has_a_row"),
        ("tests/docs/test_faults.py", "test_nothing"),
        ("tests/docs/test_nowhere.py", "test_every_fault_has_a_row"),
    ]
    assert _missing(named) == [f"{file}::{name}" for file, name in named[1:]]

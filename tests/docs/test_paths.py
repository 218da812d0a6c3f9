"""Paths that the documents name exist."""

from __future__ import annotations

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
_PATH = re.compile(
    r"`((?:headwise|kvstore|services|deploy|checks|benchmarks|tests|docs|proto)/[\w./-]+)`"
)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_exist(page: pathlib.Path) -> None:
    named = set(_PATH.findall(page.read_text(encoding="utf-8")))
    assert {path for path in named if not (ROOT / path).exists()} == set()

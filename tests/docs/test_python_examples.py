"""Python in the documents parses, and calls the client with names that it has."""

from __future__ import annotations

import ast
import inspect
import pathlib
import re
from collections.abc import Iterator

import pytest

import headwise
from headwise.caches import CacheCalls, LeaseOptions

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
KEYWORDS = {
    "generate": {
        "timeout_seconds",
        "request_id",
        *headwise.GenerateOptions.__annotations__,
    },
    "keep": {*inspect.signature(CacheCalls.keep).parameters, *LeaseOptions.__annotations__},
    "Client": set(inspect.signature(headwise.Client).parameters),
    "Sampling": set(inspect.signature(headwise.Sampling).parameters),
    "Tls": set(inspect.signature(headwise.Tls).parameters),
}


def examples(text: str) -> Iterator[ast.Module]:
    """The Python blocks of a page; the reference's bare signatures are none."""
    for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S):
        if not re.match(r"(async )?def |class ", block):
            yield ast.parse(block)


def unknown_names(text: str) -> set[str]:
    """Keywords and imports that the client does not have."""
    unknown = set()
    for node in (node for tree in examples(text) for node in ast.walk(tree)):
        if isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            known = KEYWORDS.get(called)
            named = {keyword.arg or "" for keyword in node.keywords}
            unknown |= {f"{called}({name}=)" for name in named - known} if known else set()
        elif isinstance(node, ast.ImportFrom) and node.module == "headwise":
            unknown |= {alias.name for alias in node.names} - set(headwise.__all__)
    return unknown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_use_names_that_exist(page: pathlib.Path) -> None:
    assert unknown_names(page.read_text(encoding="utf-8")) == set()


def test_an_unknown_name_is_found() -> None:
    text = "```python\nfrom headwise import Nope\nclient.generate(p, budget=1)\n```\n"
    assert unknown_names(text) == {"Nope", "generate(budget=)"}

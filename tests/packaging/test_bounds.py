"""The oldest libraries that are promised are those that `make lowest` runs the tests with."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

_ROOT = Path(__file__).parents[2]


def _allowed() -> dict[str, Version]:
    """Lower bounds by name, of everything but tools."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    tools = map(Requirement, extras.pop("dev"))
    # the generator of the site is no part of what is served
    extras.pop("docs")
    wanted = [Requirement(line) for part in extras.values() for line in part]
    wanted += map(Requirement, project["dependencies"])
    # this one runs the kernels
    wanted += [tool for tool in tools if tool.name == "triton"]
    return {
        each.name: Version(bound.version)
        for each in wanted
        for bound in each.specifier
        if bound.operator == ">="
    }


def test_every_lower_bound_is_pinned_as_it_is_declared() -> None:
    lines = (_ROOT / "constraints-lowest.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {name: Version(version) for name, version in pinned.items()} == _allowed()

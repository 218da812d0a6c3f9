"""Options that the documents name exist."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator

import pytest

from checks.reference import commands

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# names of an earlier release are hidden: no page shows them
OPTIONS = {
    path: {
        name
        for param in command.params
        if not getattr(param, "hidden", False)
        for name in (*param.opts, *param.secondary_opts)
    }
    for path, command in commands()
}
# of the benchmarks, which the documents name alone
_OTHERS = {"--venv", "--tiny", "--steps", "--every", "--help"}


def command_lines(text: str) -> Iterator[str]:
    """Lines of code blocks that call `headwise`, continued ones joined."""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        found = re.match(r"\s*(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\S*/)?(headwise [a-z].*)", line)
        if found:
            yield found[1]


def unknown_options(text: str) -> set[str]:
    """Options in `text` that no command has, or not the one that the line calls."""
    unknown = set()
    for line in command_lines(text):
        path = max((p for p in OPTIONS if line.startswith(p)), key=len, default="")
        named = set(re.findall(r"(?<=\s)--[a-z][a-z-]+", line))
        unknown |= {f"{path} {name}" for name in named - OPTIONS.get(path, set())}
    everything = set().union(*OPTIONS.values()) | _OTHERS
    inline = set(re.findall(r"`(--[a-z][a-z-]+)(?: [^`]*)?`", text))
    return unknown | (inline - everything)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_exist(page: pathlib.Path) -> None:
    assert unknown_options(page.read_text(encoding="utf-8")) == set()


def test_an_unknown_option_is_found() -> None:
    text = "`--nope`\n\n    $ headwise decode --pool-bytes 1 \\\n        --not-there 2\n"
    assert unknown_options(text) == {"--nope", "headwise decode --not-there"}

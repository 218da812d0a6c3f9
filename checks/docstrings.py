"""Check that docstrings are sentences: `python -m checks.docstrings [PATH ...]`.

A docstring must not open with a preposition, a conjunction or a bare pronoun, and the docstring of
anything public has at least three words. Exits with 1 and one line per finding.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

# a docstring that opens so has its subject somewhere else
OPENINGS = frozenset(
    "about above after against along among and around as at before behind below beneath beside "
    "besides between beyond both but by during else ever except for from he how if in inside into "
    "it its itself like likewise near neither nor of off on onto or out outside over per she since "
    "so somebody than that their them then there these they this those though through throughout "
    "till to too toward towards under unless until up upon what whatever when where which "
    "who whoever whom whose why with within without yet".split()
)
MIN_WORDS = 3

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def findings(path: Path, source: str) -> Iterator[str]:
    """One line per docstring of `source` that breaks a rule."""
    for node, name, public in _documented(ast.parse(source), path.stem):
        text = ast.get_docstring(node)
        if not text:
            continue
        words = re.findall(r"[\w'×/.-]+", text)
        line = node.body[0].lineno
        if words and words[0].lower() in OPENINGS and not text.startswith("`"):
            yield f"{path}:{line}: {name}: opens with {words[0]!r}"
        if public and len(words) < MIN_WORDS:
            yield f"{path}:{line}: {name}: fewer than {MIN_WORDS} words"


def python_files(roots: Sequence[str]) -> list[Path]:
    """Tracked Python files below `roots`, generated ones left out."""
    listed = subprocess.run(
        ["git", "ls-files", "--", *roots], capture_output=True, text=True, check=True
    )
    paths = (Path(line) for line in listed.stdout.splitlines())
    return [path for path in paths if path.suffix == ".py" and "headwise/v1" not in str(path)]


def _documented(
    tree: ast.AST, module: str, public: bool = True
) -> Iterator[tuple[_Documented, str, bool]]:
    if isinstance(tree, ast.Module):
        yield tree, module, True
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            known = public and not node.name.startswith("_")
            yield node, node.name, known
            # a nested function has no callers elsewhere
            yield from _documented(node, module, known and isinstance(node, ast.ClassDef))


def main() -> int:
    found = [
        line
        for path in python_files(sys.argv[1:] or ["."])
        if path.exists()
        for line in findings(path, path.read_text())
    ]
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

"""Count the structure and the language of a checkout: `python -m checks.counts ROOT [ROOT ...]`.

Prints one column per root, so that two worktrees can be compared. Tests and generated files are
left out. A function's length is its first to its last line; parameters are counted without `self`
and `cls`.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from checks.docstrings import OPENINGS, findings
from checks.documents import pages, percentile
from checks.import_cycles import PACKAGES, cycles, import_graph

MAX_PARAMETERS = 12

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def count(root: Path) -> dict[str, str]:
    """Return the figures of one checkout by name."""
    files = [p for name in PACKAGES for p in sorted((root / name).rglob("*.py")) if _counts(p)]
    trees = [(path, ast.parse(path.read_text())) for path in files]
    lines = [len(path.read_text().splitlines()) for path in files]
    functions = [node for _, tree in trees for node in _functions(tree)]
    lengths = [(node.end_lineno or 0) - node.lineno + 1 for node in functions]
    parameters = [_parameters(node) for node in functions]
    public = [node for _, tree in trees for node in _public(tree)]
    described = [node for node in public if ast.get_docstring(node)]
    offenders = [line for path in files for line in findings(path, path.read_text())]
    documents = pages(root)
    words = sum(page.words for page in documents)
    code_blocks = sum(page.code_blocks for page in documents)
    return {
        "files / lines": f"{len(files)} / {sum(lines)}",
        "file: median / p95 / longest": _spread(lines),
        "functions": str(len(functions)),
        "function: median / p95 / longest": _spread(lengths),
        f"functions of more than {MAX_PARAMETERS} parameters": str(
            sum(n > MAX_PARAMETERS for n in parameters)
        ),
        "most parameters": str(max(parameters)),
        "import cycles: at load / hidden ones too": (
            f"{len(cycles(import_graph(root, hidden=False)))}"
            f" / {len(cycles(import_graph(root, hidden=True)))}"
        ),
        "docstrings on public functions and classes": f"{len(described) / len(public):.0%}",
        f"docstrings with one of {len(OPENINGS)} bad openings, or too short": str(len(offenders)),
        "documents: paragraphs over 60 words": str(
            sum(len(page.long_paragraphs) for page in documents)
        ),
        "documents: code blocks per 1,000 words": f"{1000 * code_blocks / words:.1f}",
        "documents: words of a sentence, p90": str(
            percentile((n for page in documents for n in page.sentence_lengths), 0.9)
        ),
    }


def _counts(path: Path) -> bool:
    return "v1" not in path.parts and ".venv" not in path.parts


def _functions(tree: ast.AST) -> Iterator[_Function]:
    return (node for node in ast.walk(tree) if isinstance(node, _Function))


def _parameters(node: _Function) -> int:
    args = node.args
    names = [a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
    extra = (args.vararg is not None) + (args.kwarg is not None)
    return len([name for name in names if name not in ("self", "cls")]) + extra


def _public(tree: ast.AST) -> Iterator[_Function | ast.ClassDef]:
    """Functions and classes without a leading underscore, methods of public classes included."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, _Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from _public(node)


def _spread(values: Sequence[int]) -> str:
    p95 = statistics.quantiles(values, n=20)[-1]
    return f"{statistics.median(values):g} / {p95:.0f} / {max(values)}"


def main() -> int:
    """Print a table with a column for each root."""
    columns = [count(Path(root)) for root in sys.argv[1:] or ["."]]
    for name in columns[0]:
        print(f"| {name} |", " | ".join(column[name] for column in columns), "|")
    return 0


if __name__ == "__main__":
    sys.exit(main())

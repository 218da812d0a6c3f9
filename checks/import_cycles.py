"""Find cycles among the project's own modules: `python -m checks.import_cycles [ROOT]`.

Imports at load time, behind `TYPE_CHECKING` and inside functions all count. A cycle is a strongly
connected component of more than one module. Exits with 1 and one line per cycle.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, KeysView, Mapping
from pathlib import Path

PACKAGES = ("headwise", "kvstore", "services", "deploy", "benchmarks", "checks")

Graph = Mapping[str, frozenset[str]]


def import_graph(root: Path, *, hidden: bool) -> Graph:
    """Return each module's imports of the project's modules.

    `hidden` adds imports behind `TYPE_CHECKING` and inside functions.
    """
    files = {_module(path): root / path for path in _tracked(root)}
    return {
        name: frozenset(_imports(name, file, files.keys(), hidden=hidden))
        for name, file in files.items()
    }


def cycles(graph: Graph) -> list[tuple[str, ...]]:
    """Return the strongly connected components of more than one module (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[tuple[str, ...]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in graph[module]:
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            at = stack.index(module)
            component = tuple(sorted(stack[at:]))
            del stack[at:]
            if len(component) > 1:
                found.append(component)

    for module in graph:
        if module not in index:
            visit(module)
    return found


def _tracked(root: Path) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--", *PACKAGES], cwd=root, capture_output=True, text=True, check=True
    )
    paths = (Path(line) for line in listed.stdout.splitlines())
    return [p for p in paths if p.suffix == ".py" and (root / p).exists() and "v1" not in p.parts]


def _module(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(name: str, file: Path, known: KeysView[str], *, hidden: bool) -> Iterator[str]:
    tree = ast.parse(file.read_text())
    for node in _statements(tree, hidden=hidden):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        else:
            base = node.module or ""
            targets = [f"{base}.{alias.name}" for alias in node.names]
            # `from package import name` loads the package where the name is no module
            targets = [target if target in known else base for target in targets]
        yield from (target for target in targets if target in known and target != name)


def _statements(node: ast.AST, *, hidden: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif hidden or not _is_hidden(child):
            yield from _statements(child, hidden=hidden)


def _is_hidden(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def main() -> int:
    """Print the cycles below the given root."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    found = cycles(import_graph(root, hidden=True))
    for cycle in found:
        print(" ↔ ".join(cycle))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

"""The project's modules have no import cycle, hidden ones included."""

from __future__ import annotations

import subprocess
from pathlib import Path

from checks.import_cycles import cycles, import_graph

_ROOT = Path(__file__).parents[2]


def test_no_module_imports_itself_by_a_detour() -> None:
    assert cycles(import_graph(_ROOT, hidden=True)) == []


def test_imports_behind_type_checking_and_in_functions_are_found(tmp_path: Path) -> None:
    package = tmp_path / "kvstore"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "first.py").write_text("if TYPE_CHECKING:\n    from kvstore.second import X\n")
    (package / "second.py").write_text("def f():\n    from kvstore import first\n")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    assert cycles(import_graph(tmp_path, hidden=False)) == []
    assert cycles(import_graph(tmp_path, hidden=True)) == [("kvstore.first", "kvstore.second")]

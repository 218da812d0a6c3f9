"""The client imports no heavy packages, and the command line starts without torch."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
import types

import pytest

import headwise

_CLIENT = sorted(
    module.name for module in pkgutil.walk_packages(headwise.__path__, prefix="headwise.")
)
_HEAVY = {"torch", "transformers", "numpy", "safetensors"}


def _loaded_by(*modules: str) -> set[str]:
    """Top-level packages in a fresh interpreter after these imports."""
    program = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    return {name.split(".")[0] for name in said.stdout.split()}


def test_no_module_of_the_client_imports_what_services_need() -> None:
    assert "headwise.client" in _CLIENT
    loaded = _loaded_by(*_CLIENT)
    assert not loaded & (_HEAVY | {"kvstore", "services", "rich"})
    library = [
        name for name in _CLIENT if not name.startswith(("headwise.commands", "headwise.cli"))
    ]
    assert "click" not in _loaded_by(*library)


def test_the_command_line_reads_its_flags_without_torch() -> None:
    assert not _loaded_by("services.commands") & _HEAVY


def test_every_public_name_of_the_package_is_exported() -> None:
    public = {
        name
        for name, value in vars(headwise).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public - {"annotations"} <= set(headwise.__all__)


@pytest.mark.parametrize("name", headwise.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert hasattr(headwise, name)

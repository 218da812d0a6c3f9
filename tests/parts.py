"""Real parts that tests need: skipped where absent, failed where CI requires them."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest


def require_package(name: str, advice: str) -> None:
    """Skip the test unless the package is there; fail instead if HEADWISE_REQUIRE_PARTS=1."""
    if importlib.util.find_spec(name) is not None:
        return
    part_is_missing(f"{name} is not installed: {advice}")


def require_import(name: str, advice: str) -> None:
    """The module must load, with the system's libraries beneath it; else as `require_package`."""
    try:
        importlib.import_module(name)
    except ImportError as error:
        part_is_missing(f"{name} cannot be imported ({error}): {advice}")


def require_program(name: str, advice: str) -> str:
    """The program's path; skips or fails as `require_package` does."""
    path = shutil.which(name)
    if path is None:
        part_is_missing(f"{name} is not on the path: {advice}")
    return path


def require_path(path: Path, advice: str) -> Path:
    """The path itself; skips or fails as `require_package` does where nothing is there."""
    if not path.exists():
        part_is_missing(f"{path} is not there: {advice}")
    return path


def part_is_missing(message: str) -> NoReturn:
    """Skip, or fail where parts are required."""
    if os.environ.get("HEADWISE_REQUIRE_PARTS") == "1":
        pytest.fail(message)
    pytest.skip(message)

"""Real parts that tests need: skipped where absent, failed where CI requires them."""

from __future__ import annotations

import importlib.util
import os

import pytest


def require_package(name: str, advice: str) -> None:
    """Skip the test unless the package is there; fail instead if HEADWISE_REQUIRE_PARTS=1."""
    if importlib.util.find_spec(name) is not None:
        return
    message = f"{name} is not installed: {advice}"
    if os.environ.get("HEADWISE_REQUIRE_PARTS") == "1":
        pytest.fail(message)
    pytest.skip(message)

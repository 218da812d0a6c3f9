"""The example clients in other languages, ready to run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.parts import require_path, require_program

_ROOT = Path(__file__).parents[2]
_SOURCES = _ROOT / "docs" / "clients"
_BUILD = _ROOT / "build"
_ADVICE = "make clients"


def node_client(script: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a Node example, whose packages `make clients` brings."""
    node = require_program("node", _ADVICE)
    packages = require_path(_BUILD / "node" / "node_modules" / "@grpc", _ADVICE).parent
    environment = {**os.environ, "NODE_PATH": str(packages), "PROTO_FOLDER": str(_ROOT / "proto")}
    return [node, str(_SOURCES / "node" / script)], environment


def cpp_client(name: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a C++ example, compiled anew where its sources changed."""
    for program in ("make", "g++", "grpc_cpp_plugin", "protoc"):
        require_program(program, _ADVICE)
    out = _BUILD / "cpp"
    make = ["make", "-C", str(_SOURCES / "cpp"), f"OUT={out}", "CXXFLAGS=-O0"]
    built = subprocess.run(make, capture_output=True, text=True, timeout=280, check=False)
    assert built.returncode == 0, built.stderr
    return [str(out / name)], dict(os.environ)

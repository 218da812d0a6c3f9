"""The example clients in other languages, ready to run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.parts import require_path, require_program

_ROOT = Path(__file__).parents[2]
_SOURCES = _ROOT / "docs" / "clients"
_BUILD = _ROOT / "build"
_PEERS = _BUILD / "peers" / "bin"
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
    return [str(_made("cpp", "CXXFLAGS=-O0") / name)], dict(os.environ)


def go_client(name: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a Go example, likewise."""
    for program in ("make", "protoc", "protoc-gen-go", "protoc-gen-go-grpc"):
        require_program(program, _ADVICE)
    require_path(Path("/usr/share/gocode/src/google.golang.org/grpc"), _ADVICE)
    compiler = require_path(_PEERS / "go", _ADVICE)
    return [str(_made("go", f"GO={compiler}") / name)], dict(os.environ)


def grpcurl() -> str:
    """The program, which `make clients` brings."""
    return str(require_path(_PEERS / "grpcurl", _ADVICE))


def _made(language: str, *variables: str) -> Path:
    """The folder of the examples in a language that is compiled."""
    out = _BUILD / language
    make = ["make", "-C", str(_SOURCES / language), f"OUT={out}", *variables]
    built = subprocess.run(make, capture_output=True, text=True, timeout=280, check=False)
    assert built.returncode == 0, built.stderr
    return out

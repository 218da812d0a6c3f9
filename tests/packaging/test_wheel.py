"""The wheel of this tree, installed where there is nothing else, is the client without torch."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from headwise.version import __version__
from tests.conftest import Pair

_ROOT = Path(__file__).parents[2]
_PINS = _ROOT / "constraints-cpu.txt"


def _run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=200, check=False
    )


def _require_success(command: Sequence[str], folder: Path) -> str:
    ended = _run(command, folder)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The client's and the services'."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    # from a copy, because setuptools leaves a build folder in the tree it builds
    tree = folder / "tree"
    tree.mkdir()
    files = _require_success(["git", "ls-files", "-z"], _ROOT).rstrip("\0").split("\0")
    for name in files:
        if (_ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((_ROOT / name).read_bytes())
    sources = [str(tree), str(tree / "server")]
    _require_success([*pip, "--no-deps", "--wheel-dir", str(folder), *sources], folder)
    (client,), (server,) = folder.glob("headwise-*.whl"), folder.glob("headwise_server-*.whl")
    return client, server


@pytest.fixture(scope="module")
def wheel(wheels: tuple[Path, Path]) -> Path:
    """Return the wheel of the client."""
    return wheels[0]


@pytest.fixture(scope="module")
def clean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel and what it needs, and no more."""
    folder = tmp_path_factory.mktemp("clean")
    _require_success([sys.executable, "-m", "venv", str(folder / "venv")], folder)
    python = folder / "venv" / "bin" / "python"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    _require_success([*pip, "--only-binary", ":all:", "-c", str(_PINS), str(wheel)], folder)
    return python


def _contents(wheel: Path) -> tuple[set[str], set[str]]:
    """Files of a wheel, and the names that it takes at the top."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    return names, {name.split("/")[0] for name in names}


def test_the_clients_wheel_takes_no_other_name(wheel: Path) -> None:
    names, tops = _contents(wheel)
    assert tops == {"headwise"}
    assert {"headwise/py.typed", "headwise/v1/decode_pb2.pyi"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in zipfile.ZipFile(wheel).namelist())


def test_the_servers_wheel_holds_what_the_clients_does_not(wheels: tuple[Path, Path]) -> None:
    names, tops = _contents(wheels[1])
    assert tops == {"kvstore", "services"}
    assert "kvstore/py.typed" in names
    assert any("calibration/known/calibration-retrieval" in name for name in names)
    all_names = zipfile.ZipFile(wheels[1]).namelist()
    assert any(name.endswith("licenses/LICENSE") for name in all_names)
    # two distributions with one file overwrite each other
    assert not names & _contents(wheels[0])[0]
    (metadata,) = (name for name in all_names if name.endswith("/METADATA"))
    text = zipfile.ZipFile(wheels[1]).read(metadata).decode()
    assert f"Requires-Dist: headwise[serve]=={__version__}" in text


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["generate", "--help"]])
def test_a_package_services_of_someone_else_does_no_harm(
    clean_python: Path, tmp_path: Path, arguments: list[str]
) -> None:
    for name in ("services", "kvstore"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("mine = True\n")
    ended = subprocess.run(
        [str(clean_python.with_name("headwise")), *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    program = "import services; assert services.mine; import headwise; assert services.mine"
    _require_success([str(clean_python), "-c", program], tmp_path)


def test_the_client_needs_no_torch(clean_python: Path, tmp_path: Path) -> None:
    program = """
import importlib.util
from headwise import AsyncClient, Client, Policy, __version__
with Client("127.0.0.1:1") as client:
    client.generate("x", policy=Policy("full", {"x": 1}), max_tokens=1).cancel()
for absent in ("torch", "transformers", "numpy", "rich"):
    assert importlib.util.find_spec(absent) is None, absent
print(__version__)
"""
    said = _require_success([str(clean_python), "-W", "error", "-c", program], tmp_path)
    assert said.strip()


@pytest.mark.parametrize("command", ["demo", "prefill", "decode", "doctor", "top", "eval"])
def test_a_command_names_the_distribution_it_misses(
    clean_python: Path, tmp_path: Path, command: str
) -> None:
    ended = _run([str(clean_python.with_name("headwise")), command], tmp_path)
    assert ended.returncode != 0
    assert "headwise-server" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--version",), __version__),
        (("--help",), "headwise-server"),
        (("generate", "--help"), "HEADWISE_TARGET"),
        (("cache", "keep", "--help"), "--ttl"),
    ],
)
def test_the_client_alone_has_its_commands(
    clean_python: Path, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    assert says in _require_success([str(clean_python.with_name("headwise")), *arguments], tmp_path)


@pytest.mark.processes
def test_the_client_alone_asks_and_stores(
    clean_python: Path, tmp_path: Path, tiny_pair: Pair
) -> None:
    command = [str(clean_python.with_name("headwise"))]
    target = ["--target", tiny_pair[1].target]
    (tmp_path / "document").write_text("one two three")
    handle = _require_success([*command, "cache", "keep", "document", *target], tmp_path).strip()
    asked = _require_success(
        [*command, "generate", " four", "--cache", handle, "--quiet", *target], tmp_path
    )
    assert asked.strip()
    _require_success([*command, "cache", "release", handle, *target], tmp_path)

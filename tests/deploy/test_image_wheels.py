"""The image's wheels are pinned by hash, as the constraints say, and torch's index is for torch."""

from __future__ import annotations

import re
import tomllib

import pytest

from deploy.image_wheels import EXTRAS, FOLDER
from tests.deploy.rendered import ROOT

_LINE = re.compile(r"([a-z0-9-]+)==(\S+) --hash=sha256:[0-9a-f]{64}")
_HASHED = ("requirements.txt", "torch-cpu.txt", "smollm2.txt")


def _pins(file: str) -> dict[str, str]:
    lines = [line for line in (FOLDER / file).read_text().splitlines() if line[0] != "#"]
    found = [_LINE.fullmatch(line) for line in lines]
    assert all(found), file
    return {match[1]: match[2] for match in found if match}


def _name(requirement: str) -> str:
    return re.split(r"[<>=!;\[ ]", requirement)[0].lower().replace("_", "-")


def test_every_wheel_has_a_hash_and_the_version_of_the_constraints() -> None:
    constraints = dict(
        line.lower().replace("_", "-").split("==")
        for line in (ROOT / "constraints-cpu.txt").read_text().splitlines()
        if line[0] != "#"
    )
    for file in _HASHED:
        for name, version in _pins(file).items():
            assert constraints.get(name, version) == version


def test_all_that_an_image_needs_is_listed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"]]
    for extra in EXTRAS.split(","):
        needed += project["optional-dependencies"][extra]
    listed = _pins("requirements.txt").keys() | _pins("torch-cpu.txt").keys()
    assert {_name(each) for each in needed} <= listed
    cuda = (FOLDER / "torch-cuda.txt").read_text().splitlines()[-1]
    assert cuda.split()[0] == f"torch=={_pins('torch-cpu.txt')['torch']}"


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_pytorchs_index_is_asked_for_torch_alone(kind: str) -> None:
    text = (FOLDER / f"Dockerfile.{kind}").read_text()
    assert "extra-index-url" not in text
    assert 'ARG TORCH_ARGS="--index-url ' in text
    makefile = (ROOT / "Makefile").read_text()
    recipe = makefile.partition("\nimage-environment:")[2].partition("\n\n")[0]
    installs = [line for line in recipe.splitlines() if "INTO_IMAGE" in line]
    assert [line for line in installs if "TORCH_ARGS" in line] == [
        "\t$(INTO_IMAGE) $(TORCH_ARGS) -r $(TORCH)"
    ]
    # what was built here has no hash
    others = [line for line in installs if "TORCH" not in line and "build/wheel" not in line]
    assert others
    assert all("--require-hashes" in line for line in others)

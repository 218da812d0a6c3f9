"""Services and clients of older versions, each from an archive of its packages."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from services.demo.processes import Service, running_service

# what `make release-record` adds to; "first" is the version whose contract is the baseline
ARCHIVES = sorted((Path(__file__).parent / "versions").glob("*.tar.gz"))

_GENERATE = """
import sys
from headwise import Client
with Client(sys.argv[1]) as client:
    generation = client.generate(
        sys.argv[2], policy=sys.argv[3], max_tokens=int(sys.argv[4]), ignore_eos=True
    )
    print("".join(delta.text for delta in generation))
"""


class OlderVersion:
    """One version's packages, unpacked into a folder; they run on the dependencies of today."""

    def __init__(self, archive: Path, folder: Path) -> None:
        self._folder = folder
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")

    @contextlib.contextmanager
    def running(self, name: str, arguments: Sequence[str]) -> Iterator[Service]:
        """Run the version's service `name` as a process until the block ends."""
        with running_service(name, arguments, packages=self._folder) as service:
            yield service

    def generate(self, target: str, prompt: str, policy: str, max_tokens: int) -> str:
        """Return the answer that the version's client gets; raises as `subprocess.run` does."""
        arguments = [target, prompt, policy, str(max_tokens)]
        ran = subprocess.run(
            [sys.executable, "-c", _GENERATE, *arguments],
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.removesuffix("\n")

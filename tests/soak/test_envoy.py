"""Two prefills and two decodes behind Envoy, of which some are killed and some drained in mid-run:
no request is lost silently.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from headwise import Client, HeadwiseError, Unavailable
from services.demo.processes import Service, running_service
from tests.interop.envoy import Envoy, free_ports, running_envoy
from tests.observe import wait_until

pytestmark = [pytest.mark.soak, pytest.mark.processes]

_REQUESTS = 500
_CLIENTS = 6
_MOST_TRIES = 20
# what of the requests has ended when something happens
_KILLED_AT, _DRAINED_AT = 120, 300


class Replicas:
    """Two of each service at fixed ports, which are started, killed and drained."""

    def __init__(self, model: str, envoy: Envoy, ports: dict[str, list[int]]) -> None:
        self._model = model
        self._prefill_target = envoy.prefill_target
        self._ports = ports
        self._stack = contextlib.ExitStack()
        self.running: dict[tuple[str, int], Service] = {}

    def start(self, name: str, number: int) -> None:
        arguments = ["--model", self._model, "--threads", "1"]
        arguments += ["--port", str(self._ports[name][number])]
        if name == "decode":
            arguments += ["--prefill", self._prefill_target]
        service = self._stack.enter_context(running_service(name, arguments))
        self.running[name, number] = service

    def kill(self, name: str, number: int) -> None:
        process = self.running[name, number].process
        process.kill()
        process.wait()

    def drain(self, name: str, number: int) -> None:
        self.running[name, number].process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        self._stack.close()


class Asking:
    """Clients that ask until so many requests have ended; each tries again what may be tried."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self.answers: dict[int, tuple[int, ...]] = {}
        self.retried: collections.Counter[str] = collections.Counter()
        self.lost: list[str] = []
        self._threads = [threading.Thread(target=self._work) for _ in range(_CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        with Client(self._target) as client:
            while (number := next(self._numbers)) < _REQUESTS:
                try:
                    self._ask(client, number)
                except Exception as error:
                    self.lost.append(f"request {number}: {error!r}")

    def _ask(self, client: Client, number: int) -> None:
        for _ in range(_MOST_TRIES):
            generation = client.generate(
                prompt(number), max_tokens=8, ignore_eos=True, timeout_seconds=30
            )
            try:
                tokens = [token for delta in generation for token in delta.token_ids]
                assert generation.result.usage.completion_tokens == len(tokens)
                self.answers[number] = tuple(tokens)
                return
            except Unavailable as error:
                with self._lock:
                    self.retried[error.reason] += 1
                threading.Event().wait(0.3)
        self.lost.append(f"request {number}: unavailable {_MOST_TRIES} times")

    def join(self) -> None:
        for thread in self._threads:
            thread.join(240)
            assert not thread.is_alive(), "a request neither ended nor failed"


def prompt(number: int) -> list[int]:
    """Return a prompt whose answer no other prompt has."""
    return [2 + (7 * n + 13 * number) % 500 for n in range(40 + number % 50)]


@pytest.fixture
def replicas(tiny_model: Path, tmp_path: Path) -> Iterator[tuple[Replicas, Envoy]]:
    ports = free_ports(4)
    by_name = {"decode": ports[:2], "prefill": ports[2:]}
    with running_envoy(tmp_path, by_name["decode"], by_name["prefill"]) as envoy:
        replicas = Replicas(str(tiny_model), envoy, by_name)
        try:
            for name, number in itertools.product(("prefill", "decode"), range(2)):
                replicas.start(name, number)
            yield replicas, envoy
        finally:
            replicas.close()


def test_no_request_is_lost(replicas: tuple[Replicas, Envoy]) -> None:
    group, envoy = replicas
    wait_until(lambda: _serves(envoy.target), 60, "replicas in health")
    asking = Asking(envoy.target)
    wait_until(lambda: len(asking.answers) >= _KILLED_AT, 120, "requests before the kill")
    for name in ("prefill", "decode"):
        group.kill(name, 0)
    for name in ("prefill", "decode"):
        group.start(name, 0)
    wait_until(lambda: len(asking.answers) >= _DRAINED_AT, 120, "requests after it")
    for name in ("decode", "prefill"):
        group.drain(name, 1)
    asking.join()
    assert not asking.lost
    assert sorted(asking.answers) == list(range(_REQUESTS))
    for name in ("decode", "prefill"):
        drained = group.running[name, 1]
        assert drained.process.wait(30) == 0
        _, _, after = drained.log.read_text().partition("draining")
        ended = [line.split(": ", 1)[1] for line in after.splitlines() if "headwise.calls" in line]
        assert all(" OK " in line or " UNAVAILABLE " in line for line in ended), ended
    # the answers are those of a service that nothing ever happened to
    with Client(group.running["decode", 0].target) as client:
        for number in range(0, _REQUESTS, 25):
            again = client.generate(prompt(number), max_tokens=8, ignore_eos=True)
            tokens = tuple(token for delta in again for token in delta.token_ids)
            assert asking.answers[number] == tokens


def _serves(target: str) -> bool:
    with Client(target, retries=False) as client:
        try:
            client.generate(prompt(0), max_tokens=1, timeout_seconds=5).text()
        except HeadwiseError:
            return False
    return True

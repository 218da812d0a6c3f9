"""One tenant does everything hostile at once: the others wait little longer and lose nothing.

They are compared with themselves beside a tenant that is as busy as its share allows. Both are
measured in turn, so that other work on the machine falls on both.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.demo.processes import Service
from tests.conftest import Pair, running_pair
from tests.observe import scrape
from tests.security.tokens import write
from tests.soak.honest import Seen, Tenant, work

pytestmark = [pytest.mark.processes]

_SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
_SLICES = 6
# of the time with the hostile tenant, the time beside a busy one
_BUSY_RATIO = 0.4
_RATIO_LIMIT = 1.5
_PROBE_SECONDS = 1.0
_LOG_BYTES_PER_SECOND = 100_000
_HONEST = ("ada", "ben", "cyd")
_LIMITS = '[tenants."*"]\nstreams = 64\n'
_DECODE = (
    *("--max-sequences", "16"),
    *("--max-queued", "24"),
    *("--max-sessions", "24"),
    *("--pool-bytes", str(24 << 20)),
)
_PREFILL = (
    # tenants take turns between chunks: of 256 tokens one takes some 10 ms here
    *("--chunk-tokens", "256"),
    *("--max-queued", "24"),
    *("--max-leases", "64"),
    *("--store-memory-bytes", str(16 << 20)),
    *("--send-buffer-bytes", str(16 << 20)),
)
_BOTH = ("--reader-stall-seconds", "5", "--health-port", "0", "--threads", "1")


@pytest.fixture(scope="module")
def pair(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    limits = write(tmp_path_factory.mktemp("limits") / "limits.toml", _LIMITS)
    both = (*_BOTH, "--tokens", str(limits))
    with running_pair(str(tiny_model), (*_PREFILL, *both), (*_DECODE, *both)) as services:
        yield services


@contextlib.contextmanager
def _hostile(pair: Pair, outcomes: list[dict[str, int]]) -> Iterator[None]:
    """The hostile tenant as a process, until the block ends."""
    command = [sys.executable, "-m", "tests.soak.hostile", pair[0].target, pair[1].target]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield
            assert process.poll() is None
            output, _ = process.communicate(timeout=60)
            outcomes.append(json.loads(output))
        finally:
            process.kill()


class Probes(threading.Thread):
    """Asks both services twice a second whether they live; `slowest` in seconds."""

    def __init__(self, pair: Pair) -> None:
        super().__init__(daemon=True)
        self.slowest = 0.0
        self.count = 0
        self._ports = [service.health_port for service in pair]
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.5):
            for port in self._ports:
                began = time.monotonic()
                with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                    request = health_pb2.HealthCheckRequest(service="live")
                    health_pb2_grpc.HealthStub(channel).Check(request, timeout=30)
                self.slowest = max(self.slowest, time.monotonic() - began)
                self.count += 1

    def end(self) -> None:
        self._over.set()
        self.join()


@dataclasses.dataclass(slots=True)
class Run:
    """Observations of one kind of slices."""

    seen: Seen
    slowest_probe: float = 0.0

    def figures(self) -> dict[str, float]:
        """Percentiles in milliseconds."""
        kinds = {"first": self.seen.first_token, "between": self.seen.between_tokens}
        return {
            f"{name}_p{percent}_ms": round(1e3 * float(np.percentile(seconds, percent)), 1)
            for name, seconds in kinds.items()
            for percent in (50, 99)
        } | {"probe_ms": round(1e3 * self.slowest_probe, 1)}


class Soak:
    """Tenants that work for slices of time, alone, beside a busy and beside a hostile tenant."""

    def __init__(self, pair: Pair, seconds: float) -> None:
        self._pair = pair
        self._slice_seconds = seconds / _SLICES
        self.alone, self.busy, self.hostile = Run(Seen()), Run(Seen()), Run(Seen())
        self.hostile_outcomes: list[dict[str, int]] = []

    async def run(self) -> None:
        target = self._pair[1].target
        tenants = [Tenant(target, name, seed) for seed, name in enumerate(_HONEST)]
        # as many sequences as the share of one of four tenants
        neighbour = [Tenant(target, "neighbour", 10 + number) for number in range(4)]
        for tenant in (*tenants, *neighbour):
            await tenant.prepare()
        short = _BUSY_RATIO * self._slice_seconds
        for _ in range(_SLICES):
            await self._measure(self.alone, work(tenants, short / 4))
            beside = asyncio.create_task(work(neighbour, short, 0.0))
            await self._measure(self.busy, work(tenants, short))
            await beside
            with _hostile(self._pair, self.hostile_outcomes):
                # it has what it can get before anything is measured
                await asyncio.sleep(min(5.0, self._slice_seconds / 4))
                await self._measure(self.hostile, work(tenants, self._slice_seconds))
        for tenant in (*tenants, *neighbour):
            await tenant.close()

    async def _measure(self, run: Run, working: object) -> None:
        probes = Probes(self._pair)
        probes.start()
        run.seen.add(await working)  # type: ignore[misc]
        await asyncio.to_thread(probes.end)
        run.slowest_probe = max(run.slowest_probe, probes.slowest)


def _lost_nothing(seen: Seen) -> bool:
    """Whether every round went to its end: no refusal, no session or lease that was gone."""
    return set(seen.outcomes) == {"round"}


def _log_bytes(services: Pair) -> int:
    return sum(service.log.stat().st_size for service in services)


def _report(soak: Soak, pair: Pair, log_bytes: int) -> str:
    totals: dict[str, int] = {}
    for outcomes in soak.hostile_outcomes:
        for name, count in outcomes.items():
            totals[name] = totals.get(name, 0) + count
    lines = [
        f"{name}: {run.figures()} {dict(run.seen.outcomes)}"
        for name, run in (("alone", soak.alone), ("busy", soak.busy), ("hostile", soak.hostile))
    ]
    lines += [f"hostile calls: {totals}", f"log bytes: {log_bytes}"]
    lines += [f"{service.name}: {_yielded(service)}" for service in pair]
    return "\n".join(lines)


def _yielded(service: Service) -> dict[str, float]:
    samples = scrape(service.metrics_url)
    return {name: n for name, n in samples.items() if name.startswith("headwise_shares_yielded_t")}


@pytest.mark.soak
@pytest.mark.timeout(3 * _SECONDS + 600)
def test_others_hardly_notice_a_hostile_tenant(pair: Pair) -> None:
    soak, before, began = Soak(pair, _SECONDS), _log_bytes(pair), time.monotonic()
    asyncio.run(soak.run())
    log_bytes = _log_bytes(pair) - before
    report = _report(soak, pair, log_bytes)
    sys.stdout.write(report)
    assert _lost_nothing(soak.hostile.seen), report
    assert log_bytes < _LOG_BYTES_PER_SECOND * (time.monotonic() - began), report
    busy, hostile = soak.busy.figures(), soak.hostile.figures()
    slower = [
        name
        for name in ("first_p99_ms", "between_p99_ms")
        if hostile[name] > _RATIO_LIMIT * busy[name]
    ]
    if slower or soak.hostile.slowest_probe > _PROBE_SECONDS:
        # not reached yet: places of generations whose caches are still arriving are not given up
        pytest.xfail(f"{slower}\n{report}")


@pytest.mark.timeout(300)
def test_others_lose_nothing_to_a_hostile_tenant(pair: Pair) -> None:
    """The soak's beginning, without its times."""
    soak, before, began = Soak(pair, 4.0 * _SLICES), _log_bytes(pair), time.monotonic()
    asyncio.run(soak.run())
    log_bytes = _log_bytes(pair) - before
    report = _report(soak, pair, log_bytes)
    assert _lost_nothing(soak.hostile.seen), report
    assert log_bytes < _LOG_BYTES_PER_SECOND * (time.monotonic() - began), report
    assert all(sum(outcomes.values()) for outcomes in soak.hostile_outcomes)

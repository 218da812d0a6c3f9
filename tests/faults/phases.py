"""The phase of a request, and what remains of it, by the metrics of both processes."""

from __future__ import annotations

import enum
import threading
import time
from typing import Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.demo.processes import Service
from tests.conftest import Pair
from tests.observe import scrape, wait_until

# prompts that stay long enough in a phase; see `tests/faults/conftest.py` for the model
LONG_PROMPT = 8_192
CHUNK = 1_024
LONG_ANSWER = 4_000

_DECODE_CLEAN = (
    "headwise_pool_rows",
    "headwise_pool_pages{state=used}",
    "headwise_pool_pages{state=reserved}",
    "headwise_sequences",
    "headwise_running_requests{method=Generate}",
)
_PREFILL_CLEAN = (
    "headwise_prefill_computing",
    "headwise_prefill_queued",
    "headwise_prefill_unread_bytes",
    "headwise_running_requests{method=Prefill}",
)


class Phase(enum.Enum):
    """The phase of the only request of a pair of services."""

    NOTHING = "nothing"
    PREFILL = "prefill"
    TRANSFER = "transfer"
    DECODE = "decode"


# the prompt's tokens with which a request stays in the phase for seconds
PROMPT_TOKENS = {Phase.PREFILL: LONG_PROMPT, Phase.TRANSFER: CHUNK, Phase.DECODE: 64}


def phase_of(pair: Pair) -> Phase:
    """Rows arrive while prefill computes or sends: that is the transfer."""
    prefill = scrape(pair[0].metrics_url)
    computing = prefill["headwise_prefill_computing"]
    sending = computing or prefill["headwise_prefill_unread_bytes"]
    decode = scrape(pair[1].metrics_url)
    if decode["headwise_pool_rows"]:
        return Phase.TRANSFER if sending else Phase.DECODE
    return Phase.PREFILL if computing and decode["headwise_sequences"] else Phase.NOTHING


def reach(pair: Pair, phase: Phase) -> None:
    wait_until(lambda: phase_of(pair) is phase, 60, f"the {phase.value} phase")


class PhaseWatch:
    """Follows the pair's only request while the block runs; `last` is the last phase seen."""

    def __init__(self, pair: Pair) -> None:
        self.last = Phase.NOTHING
        self._pair = pair
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def _follow(self) -> None:
        while not self._over.wait(0.01):
            phase = phase_of(self._pair)
            if phase is not Phase.NOTHING:
                self.last = phase

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def leftovers(service: Service) -> dict[str, float]:
    """Return what a service still holds or does; empty if nothing."""
    names = _DECODE_CLEAN if service.name == "decode" else _PREFILL_CLEAN
    samples = scrape(service.metrics_url)
    # a method that was never called has no sample
    return {name: samples[name] for name in names if samples.get(name)}


def clean_after(*services: Service, within_seconds: float) -> float:
    """Seconds until the services hold nothing and compute nothing any more."""
    began = time.monotonic()
    for service in services:
        left = within_seconds - (time.monotonic() - began)
        wait_until(lambda s=service: not leftovers(s), left, f"{service.name} to be clean")
    return time.monotonic() - began


def serving(service: Service) -> bool:
    """Return the answer of the standard health service for the server."""
    with grpc.insecure_channel(service.target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

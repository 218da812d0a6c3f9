"""Random requests that end in every way there is, for as long as one likes (SOAK_SECONDS)."""

from __future__ import annotations

import asyncio
import collections
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from services.demo.processes import Service
from tests.conftest import Pair, running_pair
from tests.observe import scrape, wait_until
from tests.soak.visits import visits

pytestmark = [pytest.mark.soak, pytest.mark.processes]

_SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
# that were worked on in a whole run; a shorter one has its share
_REQUESTS, _WHOLE_SECONDS = 2000, 600
_VISITORS = 12
# memory is looked at between slices, when nothing runs
_SLICES = 12
# allocators settle within the first part; from there on memory must be flat
_WARM_UP_SLICES = 4
_GROWTH_LIMIT = 0.02
_IDLE_SECONDS = 4.0

# small enough that sessions are evicted, sequences preempted, and requests wait or are refused
_DECODE_ARGUMENTS = (
    *("--pool-bytes", str(1 << 20)),
    *("--max-sequences", "8"),
    *("--max-queued", "3"),
    *("--max-sessions", "8"),
)

_DECODE_CLEAN = (
    "headwise_sequences",
    "headwise_queued_requests",
    "headwise_sessions",
    "headwise_preempted_sequences",
    "headwise_pool_rows",
    "headwise_kv_resident_bytes{tier=pool}",
    "headwise_kv_resident_bytes{tier=host}",
    "headwise_pool_pages{state=used}",
    "headwise_pool_pages{state=reserved}",
    "headwise_running_requests{method=Generate}",
)
_PREFILL_CLEAN = (
    "headwise_prefill_computing",
    "headwise_prefill_queued",
    "headwise_running_requests{method=Prefill}",
)

_WORKED_ON = ("ended", "turn", "left", "disconnected", "DEADLINE_EXCEEDED")
# every way to end, or the run proves little
_MUST_OCCUR = {
    *("ended", "left", "disconnected", "DEADLINE_EXCEEDED", "UNKNOWN_POLICY", "DECODE_FULL"),
    *("turn", "forked", "described", "released", "SESSION_EXPIRED", "SESSION_EVICTED"),
}


@pytest.fixture(scope="module")
def small_pair(tiny_model: Path) -> Iterator[Pair]:
    with running_pair(str(tiny_model), (), _DECODE_ARGUMENTS) as pair:
        yield pair


def _leftovers(pair: Pair) -> dict[str, float]:
    """Every gauge that ought to be zero and is not."""
    found: dict[str, float] = {}
    for service, names in zip(pair, (_PREFILL_CLEAN, _DECODE_CLEAN), strict=True):
        samples = scrape(service.metrics_url)
        # a method that was never called has no sample
        found |= {name: samples[name] for name in names if samples.get(name)}
    return found


def _wait_until_empty(pair: Pair) -> None:
    """Wait until the pair holds nothing; at most the longest TTL of a session."""
    try:
        wait_until(lambda: not _leftovers(pair), 40, "everything to be given back")
    except AssertionError:
        logs = "\n".join(_troubles(service) for service in pair)
        pytest.fail(f"left behind: {_leftovers(pair)}\n{logs}")


def _troubles(service: Service) -> str:
    """The tracebacks in its log but those of a full pool, or its end if there is none."""
    text = service.log.read_text()
    found = ["Traceback" + part[:3000] for part in text.split("Traceback")[1:]]
    unforeseen = [part for part in found if "PoolExhausted" not in part]
    return "\n".join(unforeseen) or text[-1000:]


def _resident(service: Service) -> int:
    return int(psutil.Process(service.process.pid).memory_info().rss)


def _growth(resident: list[int]) -> float:
    """Return the ratio of the last third's median to the first third's, after the warm-up."""
    settled = resident[_WARM_UP_SLICES:]
    third = len(settled) // 3 or 1
    return statistics.median(settled[-third:]) / statistics.median(settled[:third]) - 1


@pytest.mark.timeout(_SECONDS + 900)
def test_nothing_is_left_and_memory_is_flat(small_pair: Pair) -> None:
    outcomes: collections.Counter[str] = collections.Counter()
    resident: dict[str, list[int]] = {service.name: [] for service in small_pair}
    for number in range(_SLICES):
        target, seconds = small_pair[1].target, _SECONDS / _SLICES
        outcomes += asyncio.run(visits(target, _VISITORS, seconds, seed=number))
        assert "INTERNAL" not in outcomes, "\n".join(map(_troubles, small_pair))
        _wait_until_empty(small_pair)
        # an idle service gives freed memory back after two seconds: what is left is in use
        time.sleep(_IDLE_SECONDS)
        for service in small_pair:
            resident[service.name].append(_resident(service))
    preempted = scrape(small_pair[1].metrics_url)["headwise_preemptions_total"]
    assert outcomes.keys() >= _MUST_OCCUR, outcomes
    worked_on = sum(outcomes[outcome] for outcome in _WORKED_ON)
    assert worked_on >= _REQUESTS * min(1.0, _SECONDS / _WHOLE_SECONDS)
    assert preempted > 0
    for name, sizes in resident.items():
        megabytes = [round(size / 1e6, 1) for size in sizes]
        assert _growth(sizes) < _GROWTH_LIMIT, f"{name}: {megabytes} MB; {outcomes}"

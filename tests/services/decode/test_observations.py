"""Metrics of calls to prefill, with and without an answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from headwise import Unavailable
from headwise.errors import DeadlineExceeded, Overloaded
from headwise.v1 import cache_pb2
from kvstore.wire import WireLimits
from services.decode.link.prefill_source import PrefillSource
from services.decode.memory.intake import Intake
from services.decode.observations import watched_call, watched_transfer
from tests.services.decode.engine.engine_parts import load_served, new_pool
from tests.services.decode.memory.arbiters import new_arbiter


def _reachable(target: str) -> float | None:
    return REGISTRY.get_sample_value("headwise_prefill_reachable", {"target": target})


def _transfers(outcome: str) -> float:
    return REGISTRY.get_sample_value("headwise_transfers_total", {"outcome": outcome}) or 0


async def test_a_prefill_that_does_not_listen_is_unavailable(tiny_model: Path) -> None:
    served = load_served(tiny_model)
    target, before = "127.0.0.1:1", _transfers("UNAVAILABLE")
    limits = WireLimits(max_tokens=1000, max_layers=9, max_cache_bytes=1 << 30)
    source = PrefillSource(target, served, limits=limits, stall_seconds=5)
    pool = new_pool(served, pages=64)
    intake = Intake(new_arbiter(pool).reserve_for_arrival, lambda: False)
    pages = pool.open(3)
    with pytest.raises(Unavailable):
        await source.describe()
    with pytest.raises(Unavailable):
        await source.pull((2, 3, 4), cache_pb2.Policy(name="full"), pages, 5, "", intake)
    await source.close()
    assert _reachable(target) == 0
    assert _transfers("UNAVAILABLE") == before + 1


def test_a_refusal_counts_as_reached_and_a_deadline_does_not() -> None:
    with watched_call("there"):
        pass
    assert _reachable("there") == 1
    with pytest.raises(DeadlineExceeded), watched_call("there"):
        raise DeadlineExceeded("late", "DEADLINE_EXCEEDED")
    assert _reachable("there") == 1
    with pytest.raises(Unavailable), watched_call("there"):
        raise Unavailable("gone", "PREFILL_UNAVAILABLE")
    with pytest.raises(DeadlineExceeded), watched_call("there"):
        raise DeadlineExceeded("late", "DEADLINE_EXCEEDED")
    assert _reachable("there") == 0
    before = _transfers("RESOURCE_EXHAUSTED")
    with pytest.raises(Overloaded), watched_transfer("there"):
        raise Overloaded("full", "QUEUE_FULL")
    assert _reachable("there") == 1
    assert _transfers("RESOURCE_EXHAUSTED") == before + 1

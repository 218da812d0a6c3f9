"""Random requests that end in every way there is, for as long as one likes (SOAK_SECONDS)."""

from __future__ import annotations

import asyncio
import os
import random
import time

import psutil
import pytest

from headwise import AsyncClient, HeadwiseError, Policy, Sampling
from tests.conftest import Pair
from tests.observe import scrape, wait_until
from tests.tiny_model import VOCABULARY

pytestmark = [pytest.mark.soak, pytest.mark.processes]

_SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
_WORKERS = 12
# allocators settle within the first part; from there on memory must be flat
_WARM_UP = 0.3
_GROWTH_LIMIT = 0.05

_POLICIES = (
    Policy("full"),
    Policy("coverage", {"recovery": 0.8}),
    Policy("fastgen", {"recovery": 0.9}),
    Policy("fastgen", {"recovery": 0.9, "keep_generated": True}),
    # refused: errors must leave nothing behind either
    Policy("no such policy"),
)


async def _one_request(client: AsyncClient, chance: random.Random) -> str:
    prompt = [chance.randrange(VOCABULARY) for _ in range(chance.choice((1, 2, 30, 200, 900)))]
    generation = client.generate(
        prompt,
        policy=chance.choice(_POLICIES),
        sampling=Sampling(temperature=chance.choice((0.0, 1.0)), seed=chance.randrange(2**32)),
        max_tokens=chance.choice((1, 4, 40)),
        timeout_seconds=chance.choice((None, None, 0.02, 0.2)),
    )
    leave_after = chance.choice((None, None, 0, 1, 7))
    try:
        async with asyncio.timeout(chance.choice((None, None, 0.05))):
            made = 0
            async for _ in generation:
                made += 1
                if made == leave_after:
                    break
    except TimeoutError:
        return "left"
    except HeadwiseError as error:
        return error.reason
    finally:
        generation.cancel()
    return "left" if made == leave_after else "ended"


async def _flood(target: str, until: float, seed: int) -> dict[str, int]:
    chance = random.Random(seed)
    outcomes: dict[str, int] = {}
    async with AsyncClient(target, retries=False) as client:
        while time.monotonic() < until:
            outcome = await _one_request(client, chance)
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
    return outcomes


def _memory(pair: Pair) -> int:
    return sum(psutil.Process(service.process.pid).memory_info().rss for service in pair)


async def _phase(pair: Pair, seconds: float, seed: int) -> dict[str, int]:
    until = time.monotonic() + seconds
    target = pair[1].target
    all_outcomes = await asyncio.gather(
        *(_flood(target, until, seed * _WORKERS + worker) for worker in range(_WORKERS))
    )
    total: dict[str, int] = {}
    for outcomes in all_outcomes:
        for name, count in outcomes.items():
            total[name] = total.get(name, 0) + count
    return total


def _leftovers(pair: Pair) -> dict[str, float]:
    """Every gauge that ought to be zero and is not."""
    prefill, decode = (scrape(service.metrics_url) for service in pair)
    held = (
        "headwise_sequences",
        "headwise_pool_rows",
        "headwise_running_requests{method=Generate}",
    )
    pages = tuple(f"headwise_pool_pages{{state={state}}}" for state in ("used", "reserved"))
    busy = ("computing", "queued")
    found = {name: decode[name] for name in (*held, *pages)}
    found |= {name: prefill[f"headwise_prefill_{name}"] for name in busy}
    return {name: value for name, value in found.items() if value}


def _wait_until_empty(pair: Pair) -> None:
    try:
        wait_until(lambda: not _leftovers(pair), 10, "everything to be given back")
    except AssertionError:
        logs = "\n".join(service.log.read_text()[-2000:] for service in pair)
        pytest.fail(f"left behind: {_leftovers(pair)}\n{logs}")


@pytest.mark.timeout(_SECONDS + 300)
def test_nothing_is_left_and_memory_is_flat(tiny_pair: Pair) -> None:
    warm = asyncio.run(_phase(tiny_pair, _SECONDS * _WARM_UP, seed=1))
    before = _memory(tiny_pair)
    outcomes = asyncio.run(_phase(tiny_pair, _SECONDS * (1 - _WARM_UP), seed=2))
    _wait_until_empty(tiny_pair)
    growth = _memory(tiny_pair) / before - 1
    # every way to end did occur, or the run proves little
    assert {"ended", "left", "DEADLINE_EXCEEDED", "UNKNOWN_POLICY"} <= outcomes.keys()
    assert "INTERNAL" not in outcomes, outcomes
    assert growth < _GROWTH_LIMIT, f"memory grew by {growth:.1%}; {warm}, then {outcomes}"

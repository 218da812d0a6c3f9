"""Sequences of a tenant that runs most move to host memory for another tenant, and go on later."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path

import pytest

from kvstore.pool import PageCount, SequencePages
from services.decode.engine.engine import Engine
from services.decode.engine.schedule import Scheduler
from services.decode.memory.freed_pages import FreedPages
from services.runtime.model.served_model import ServedModel
from tests.services.decode.engine.engine_parts import (
    ToldSequence,
    load_served,
    new_pool,
    new_sequence,
    prefill,
    read,
    run_alone,
)
from tests.services.decode.memory.arbiters import new_arbiter

_PROMPT = [3, 5, 8, 13, 21]
_TOKENS = 400


@pytest.fixture(scope="module")
def served(tiny_model: Path) -> ServedModel:
    return load_served(tiny_model)


async def test_a_sequence_gives_up_its_place_and_answers_as_if_alone(served: ServedModel) -> None:
    pool = new_pool(served)
    layers = prefill(served, _PROMPT[:-1], "full")
    alone = await run_alone(served, new_sequence(served, pool, _PROMPT, layers, _TOKENS))
    call_on_loop = asyncio.get_running_loop().call_soon_threadsafe
    arbiter = new_arbiter(pool, sequences=3, freed=FreedPages(call_on_loop))
    engine = Engine(served, pool, Scheduler(max_sequences=3, ranges=4, step_tokens=9), arbiter)

    async def begin(tenant: str) -> ToldSequence:
        def open_pages() -> SequencePages:
            return pool.open(0, PageCount(), owner=tenant)

        opened = await arbiter.admit(1, None, open_pages, tenant)
        opened.release()
        sequence = new_sequence(served, pool, _PROMPT, layers, _TOKENS)
        sequence.owner = tenant
        leave = functools.partial(arbiter.release_answers, tenant=tenant)
        sequence._on_release = functools.partial(call_on_loop, leave)
        engine.submit(sequence)
        return sequence

    flood = [await begin("many") for _ in range(3)]
    # without a place of its own it would wait for the end of one of them
    other = await asyncio.wait_for(begin("few"), 60)
    ended = await asyncio.gather(read(other), *map(read, flood))
    await asyncio.to_thread(engine.close)
    assert [one.tokens for one in ended] == 4 * [alone.tokens]
    assert [sequence.was_preempted for sequence in flood] == [False, False, True]
    assert not other.was_preempted

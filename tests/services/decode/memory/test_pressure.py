"""Sequences in a pool too small for all: preempted ones return and answer as if alone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from headwise import Overloaded
from kvstore.pool import PageCount, PagePool, SequencePages
from services.decode.memory.sessions import Sessions
from services.decode.report import TransferReport
from services.runtime.model.served_model import ServedModel
from tests.services.decode.engine.engine_parts import (
    ToldSequence,
    load_served,
    new_engine,
    new_pool,
    new_sequence,
    prefill,
    read,
    run_alone,
)

_TOKENS = 100
_POLICIES = (
    ("full", {}),
    ("coverage", {"recovery": 0.8, "floor_rows": 8, "windows": [8, 16]}),
    ("fastgen", {"recovery": 0.6, "floor_rows": 8, "frequent_ratio": 0.1, "local_ratio": 0.1}),
)


@pytest.fixture(scope="module")
def served(tiny_model: Path) -> ServedModel:
    return load_served(tiny_model)


def _sequence(
    served: ServedModel, pool: PagePool, number: int, promise: PageCount | None = None
) -> ToldSequence:
    policy, parameters = _POLICIES[number % len(_POLICIES)]
    prompt = served.tokenizer.encode(topics["compound"])[number * 7 : number * 7 + 60]
    suffix = 1 + 5 * (number % 2)
    layers = prefill(served, prompt[:-suffix], policy, dict(parameters))
    return new_sequence(
        served, pool, prompt, layers, _TOKENS, suffix_tokens=suffix, promise=promise
    )


async def _alone(served: ServedModel, count: int) -> list[tuple[int, ...]]:
    return [
        (await run_alone(served, _sequence(served, new_pool(served), number))).tokens
        for number in range(count)
    ]


async def test_preempted_sequences_answer_as_if_they_had_never_left(served: ServedModel) -> None:
    expected = await _alone(served, 6)
    # room for all prompts, and for the answers of two or three of them
    pool = new_pool(served, pages=150)
    engine = new_engine(served, pool)
    sequences = [_sequence(served, pool, number, PageCount()) for number in range(6)]
    for sequence in sequences:
        engine.submit(sequence)
    ended = await asyncio.gather(*map(read, sequences))
    await asyncio.to_thread(engine.close)
    assert [one.tokens for one in ended] == expected
    assert any(sequence.was_preempted for sequence in sequences)
    assert not sequences[0].was_preempted, "the oldest sequence is never preempted"
    assert pool.free == PageCount(150, 150)


async def test_without_host_memory_the_youngest_sequence_is_refused(
    served: ServedModel,
) -> None:
    expected = await _alone(served, 1)
    pool = new_pool(served, pages=100)
    engine = new_engine(served, pool, swap_bytes=0)
    first, second = (_sequence(served, pool, number, PageCount()) for number in (0, 3))
    engine.submit(first)
    engine.submit(second)
    with pytest.raises(Overloaded) as caught:
        await read(second)
    assert (caught.value.reason, bool(caught.value.retry_after_seconds)) == ("POOL_EXHAUSTED", True)
    assert (await read(first)).tokens == expected[0]
    await asyncio.to_thread(engine.close)
    assert pool.free == PageCount(100, 100)


async def test_a_sequence_that_never_finds_pages_is_given_up(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.decode.engine.engine._STARVED_SECONDS", 0.1)
    pool = new_pool(served, pages=60)
    engine = new_engine(served, pool)
    sequence = _sequence(served, pool, 0, PageCount())
    # somebody outside the engine has the rest, as an arriving cache would
    pool.open(0, pool.free)
    engine.submit(sequence)
    with pytest.raises(Overloaded):
        await read(sequence)
    await asyncio.to_thread(engine.close)


async def test_idle_sessions_are_evicted_before_a_sequence_waits(served: ServedModel) -> None:
    expected = await _alone(served, 1)
    pool = new_pool(served, pages=150)
    sessions = Sessions(max_sessions=9, on_freed=lambda: None)
    kept = _idle(served, pool)
    session_id = sessions.keep(kept, [1, 2], TransferReport(), 60)
    engine = new_engine(served, pool, sessions=sessions)
    sequence = _sequence(served, pool, 0, PageCount())
    pool.open(0, pool.free)
    engine.submit(sequence)
    assert (await read(sequence)).tokens == expected[0]
    await asyncio.to_thread(engine.close)
    assert session_id not in [session.session_id for session in sessions.all()]


def _idle(served: ServedModel, pool: PagePool) -> SequencePages:
    pages = pool.open(120, PageCount(60, 60))
    for index, layer in enumerate(prefill(served, list(range(2, 122)), "full")):
        pages.load(index, layer)
    return pages


@pytest.mark.parametrize("policy", range(len(_POLICIES)))
async def test_forked_answers_are_those_of_sequences_of_their_own(
    served: ServedModel, policy: int
) -> None:
    """Greedy forks all say the same; what one evicts or overwrites no other may notice."""
    (expected,) = (await _alone(served, policy + 1))[policy:]
    pool = new_pool(served, pages=700)
    forks = []
    for _ in range(2):
        fork = _sequence(served, pool, policy)
        assert fork.pages is not None
        fork.pages.release()
        fork.pages = None
        forks.append(fork)
    parent = _sequence(served, pool, policy)
    parent.forks = tuple(forks)
    engine = new_engine(served, pool)
    engine.submit(parent)
    ended = await asyncio.gather(*map(read, (parent, *forks)))
    await asyncio.to_thread(engine.close)
    assert [one.tokens for one in ended] == [expected] * 3
    assert pool.free_pages == 700

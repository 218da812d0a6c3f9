"""The engine steps sequences together, and none of them harms another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch

from headwise import Delta, FinishReason, InternalError, Unavailable
from kvstore.pool import BatchStep, PagePool
from services.decode.engine.engine import Engine
from services.decode.engine.step import forward_step
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
from tests.services.decode.memory.arbiters import new_arbiter

_LENGTHS = (2, 7, 40, 121)
_TOKENS = 12


@pytest.fixture(scope="module")
def served(tiny_model: Path) -> ServedModel:
    return load_served(tiny_model)


@pytest.fixture
def pool(served: ServedModel) -> PagePool:
    return new_pool(served)


@pytest.fixture
async def engine(served: ServedModel, pool: PagePool) -> AsyncIterator[Engine]:
    engine = new_engine(served, pool)
    yield engine
    await asyncio.to_thread(engine.close)


def _sequence(served: ServedModel, pool: PagePool, length: int, **more: int) -> ToldSequence:
    prompt = [(7 * i * i + length) % served.vocabulary_size for i in range(length)]
    layers = prefill(served, prompt[:-1], "full")
    return new_sequence(served, pool, prompt, layers, more.get("max_tokens", _TOKENS))


async def _empty(pool: PagePool) -> None:
    """Pages go back within a step."""
    for _ in range(200):
        if pool.free_pages == pool.pages:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{pool.pages - pool.free_pages} pages are still held")


async def test_sequences_together_give_the_tokens_they_give_alone(
    served: ServedModel, pool: PagePool, engine: Engine
) -> None:
    alone = [await run_alone(served, _sequence(served, pool, n)) for n in _LENGTHS]
    together = [_sequence(served, pool, n) for n in _LENGTHS]
    for sequence in together:
        engine.submit(sequence)
    ended = await asyncio.gather(*map(read, together))
    assert [e.tokens for e in ended] == [a.tokens for a in alone]
    assert {e.reason for e in ended} == {FinishReason.LENGTH}
    await _empty(pool)


async def test_the_last_token_is_never_fed(
    served: ServedModel, pool: PagePool, engine: Engine
) -> None:
    sequence = _sequence(served, pool, 40)
    engine.submit(sequence)
    ended = await read(sequence)
    # 39 in the cache at first, then the prompt's last token and all made but the last
    assert ended.memory.rows_dense == ended.memory.rows_kept == 4 * (40 + _TOKENS - 1)


async def test_sequences_join_and_leave_between_steps(
    served: ServedModel, pool: PagePool, engine: Engine
) -> None:
    alone = await run_alone(served, _sequence(served, pool, 40))
    long = _sequence(served, pool, 7, max_tokens=400)
    engine.submit(long)
    await asyncio.wait_for(long.events.get(), 30)
    late = _sequence(served, pool, 40)
    engine.submit(late)
    assert (await read(late)).tokens == alone.tokens
    assert not long.finished
    long.cancel()
    await _empty(pool)


async def test_a_sequence_that_fails_leaves_the_others_alone(
    served: ServedModel, pool: PagePool, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Delta:
        raise ArithmeticError("no such luck")

    alone = await run_alone(served, _sequence(served, pool, 40))
    broken, good = _sequence(served, pool, 7), _sequence(served, pool, 40)
    monkeypatch.setattr(broken._answer, "push", fail)
    engine.submit(broken)
    engine.submit(good)
    with pytest.raises(ArithmeticError):
        await read(broken)
    assert (await read(good)).tokens == alone.tokens
    await _empty(pool)


async def test_logits_that_are_not_finite_end_their_sequence_alone(
    served: ServedModel, pool: PagePool, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*given: Any) -> tuple[BatchStep, torch.Tensor]:
        taken, logits = forward_step(*given)
        for place, part in enumerate(given[2]):
            if part.chunk.sequence is pages:
                logits[place, 3] = float("nan")
        return taken, logits

    alone = await run_alone(served, _sequence(served, pool, 40))
    broken, good = _sequence(served, pool, 7), _sequence(served, pool, 40)
    pages = broken.pages
    monkeypatch.setattr("services.decode.engine.engine.forward_step", step)
    engine.submit(broken)
    engine.submit(good)
    with pytest.raises(InternalError, match="not finite"):
        await read(broken)
    assert (await read(good)).tokens == alone.tokens
    await _empty(pool)


async def test_a_failing_step_fails_its_sequences_and_the_engine_continues(
    served: ServedModel, pool: PagePool, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> torch.Tensor:
        raise ArithmeticError("a step")

    sequences = [_sequence(served, pool, n) for n in _LENGTHS]
    with monkeypatch.context() as patch:
        patch.setattr("services.decode.engine.engine.forward_step", fail)
        for sequence in sequences:
            engine.submit(sequence)
        for sequence in sequences:
            with pytest.raises(ArithmeticError):
                await read(sequence)
        await _empty(pool)
    after = _sequence(served, pool, 7)
    engine.submit(after)
    assert len((await read(after)).tokens) == _TOKENS


async def test_closing_ends_what_runs_and_what_waits(served: ServedModel, pool: PagePool) -> None:
    engine = new_engine(served, pool)
    running = _sequence(served, pool, 7, max_tokens=4000)
    engine.submit(running)
    await asyncio.wait_for(running.events.get(), 30)
    engine.submit(waiting := _sequence(served, pool, 7))
    await asyncio.to_thread(engine.close)
    for sequence in (running, waiting):
        with pytest.raises(Unavailable):
            await read(sequence)
    assert pool.free_pages == pool.pages


async def test_a_sequence_cancelled_before_it_joined_gives_its_pages_back(
    served: ServedModel, pool: PagePool, engine: Engine
) -> None:
    sequence = _sequence(served, pool, 7)
    sequence.cancel()
    engine.submit(sequence)
    await _empty(pool)


class _CancelledMeanwhile:
    """A sequence whose handler cancels it just after it was first looked at."""

    chunk = None
    forks = ()

    def __init__(self) -> None:
        self.released = False
        self._looks = 0

    @property
    def cancelled(self) -> bool:
        self._looks += 1
        return self._looks > 1

    def release(self) -> None:
        self.released = True


def test_a_sequence_cancelled_while_others_are_let_go_is_not_lost(served: ServedModel) -> None:
    engine = object.__new__(Engine)
    sequence = _CancelledMeanwhile()
    engine._running = [sequence]  # type: ignore[list-item]
    engine._memory = new_arbiter(new_pool(served))
    engine._release_sequences(lambda one: one.cancelled)
    assert sequence in engine._running or sequence.released  # type: ignore[comparison-overlap]
    engine._release_sequences(lambda one: one.cancelled)
    assert engine._running == []
    assert sequence.released

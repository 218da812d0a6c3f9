"""Sixty-four clients at once: none changes another's answer, and none starves."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest

from headwise import AsyncClient, Policy, Sampling
from tests.conftest import Pair
from tests.observe import scrape, wait_until

pytestmark = pytest.mark.processes

CLIENTS = 64
# logits of one token may differ by so much between batches, and likelier ones may then swap
_ROUNDING = 1e-4
# all ask at once and prefill serves them in turn, so the last waits about twice as long as the
# middle one; a client that others overtake again and again waits longer
_STARVED = 4.0

_POLICIES = (
    Policy("full"),
    Policy("coverage", {"recovery": 0.8}),
    Policy("full"),
    Policy("fastgen", {"recovery": 0.9}),
)
_GREEDY = Sampling(logprobs=2)
_LENGTHS = (1, 2, 31, 140, 400, 900, 257)
_TOKENS = (8, 24, 48)


@dataclasses.dataclass(frozen=True, slots=True)
class _Request:
    """One client's request; `turn` holds the tokens of a next turn on its session."""

    prompt: tuple[int, ...]
    policy: Policy
    sampling: Sampling
    max_tokens: int
    turn: tuple[int, ...] = ()

    @property
    def is_comparable(self) -> bool:
        return self.policy.name == "full" and self.sampling == _GREEDY


@dataclasses.dataclass(slots=True)
class _Answer:
    """Tokens of all answers and turns in the order they came, and the two likeliest at each."""

    seconds: float = 0.0
    tokens: list[int] = dataclasses.field(default_factory=list)
    tops: list[tuple[tuple[int, float], ...]] = dataclasses.field(default_factory=list)
    ended: int = 0


def _request(number: int) -> _Request:
    """Every length meets every policy and, of these, every way to sample."""
    length = _LENGTHS[number % len(_LENGTHS)]
    sampling = (
        _GREEDY,
        Sampling(temperature=0.9, top_k=40, seed=number),
        _GREEDY,
        Sampling(temperature=1.0, seed=number, n=2),
        _GREEDY,
    )[number % 5]
    return _Request(
        prompt=tuple((number * 31 + 7 * i * i) % 500 + 2 for i in range(length)),
        policy=_POLICIES[number % len(_POLICIES)],
        sampling=sampling,
        max_tokens=_TOKENS[number % len(_TOKENS)],
        turn=(number + 2, 9, 33) * (1 + number % 30) if number % 3 == 0 else (),
    )


async def _ask(target: str, request: _Request) -> _Answer:
    """One client's whole visit, over a connection of its own."""
    answer, began = _Answer(), time.monotonic()
    async with AsyncClient(target, retries=False) as client:
        keep: dict[str, Any] = {"session_ttl_seconds": 60.0} if request.turn else {}
        session_id = await _read(
            client, answer, request, request.prompt, policy=request.policy, **keep
        )
        if session_id:
            await _read(client, answer, request, request.turn, session_id=session_id)
            await client.sessions.release(session_id)
    answer.seconds = time.monotonic() - began
    return answer


async def _read(
    client: AsyncClient,
    answer: _Answer,
    request: _Request,
    prompt: tuple[int, ...],
    **options: Any,
) -> str:
    """Add a generation to the answer; returns its session, and releases those of its forks."""
    generation = client.generate(
        prompt,
        sampling=request.sampling,
        max_tokens=request.max_tokens,
        ignore_eos=True,
        **options,
    )
    async for delta in generation:
        answer.tokens += delta.token_ids
        answer.tops += [one.top for one in delta.logprobs]
    first, *others = await generation.results()
    for other in others:
        if other.session_id:
            await client.sessions.release(other.session_id)
    answer.ended += 1 + len(others)
    return first.session_id


async def _together(target: str, requests: list[_Request]) -> list[_Answer]:
    return await asyncio.gather(*(_ask(target, request) for request in requests))


async def _one_by_one(target: str, requests: list[_Request]) -> list[_Answer]:
    return [await _ask(target, request) for request in requests]


def _is_same(answer: _Answer, alone: _Answer) -> bool:
    """Whether the tokens are the same; if not, they must part at a near-tie."""
    same = zip(answer.tokens, alone.tokens, strict=True)
    first = next((n for n, (ours, theirs) in enumerate(same) if ours != theirs), None)
    for ours, theirs in zip(answer.tops[:first], alone.tops[:first], strict=True):
        for (_, a), (_, b) in zip(ours, theirs, strict=True):
            assert math.isclose(a, b, abs_tol=_ROUNDING)
    if first is None:
        return True
    (_, likeliest), (_, second) = alone.tops[first]
    assert likeliest - second < 2 * _ROUNDING, f"tokens part at {first} without a near-tie"
    return False


def test_every_greedy_answer_is_the_one_given_alone(
    tiny_pair: Pair, record_property: Callable[[str, object], None]
) -> None:
    requests = [_request(number) for number in range(CLIENTS)]
    target = tiny_pair[1].target
    answers = asyncio.run(_together(target, requests))
    for request, answer in zip(requests, answers, strict=True):
        made = request.max_tokens * answer.ended
        assert answer.ended == (request.sampling.n or 1) * (2 if request.turn else 1)
        assert len(answer.tokens) == made
    seconds = [answer.seconds for answer in answers]
    assert max(seconds) < _STARVED * statistics.median(seconds)

    compared = [n for n, request in enumerate(requests) if request.is_comparable]
    assert len(compared) > CLIENTS / 4
    assert any(requests[n].turn for n in compared)
    alone = asyncio.run(_one_by_one(target, [requests[n] for n in compared]))
    same = [_is_same(answers[n], one) for n, one in zip(compared, alone, strict=True)]
    record_property("near_ties", same.count(False))

    url = tiny_pair[1].metrics_url
    wait_until(lambda: scrape(url)["headwise_pool_pages{state=used}"] == 0, 5, "an empty pool")

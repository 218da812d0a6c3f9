"""Random visits to a decode service: requests, turns, forks, and leaving at every stage."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import random
import time
from typing import Any

from headwise import AsyncClient, HeadwiseError, Message, Policy, Sampling
from tests.tiny_model import VOCABULARY

_POLICIES = (
    Policy("full"),
    Policy("coverage", {"recovery": 0.8}),
    Policy("fastgen", {"recovery": 0.9}),
    Policy("fastgen", {"recovery": 0.9, "keep_generated": True}),
    # refused: errors must leave nothing behind either
    Policy("no such policy"),
)
_WORDS = ("the", "with", "statement", "wraps", "é", "日本", "else", "clause", "")
# the shorter is left to expire
_KEPT_SECONDS = (0.3, 3.0)
# ids a visitor remembers, of which some are gone by the time they are used
_REMEMBERED = 4


class Visitor:
    """One client with a connection of its own; `outcomes` counts how its requests ended."""

    def __init__(self, target: str, seed: int) -> None:
        self.outcomes: collections.Counter[str] = collections.Counter()
        self._target = target
        self._chance = random.Random(seed)
        self._sessions: collections.deque[str] = collections.deque(maxlen=_REMEMBERED)

    async def visit(self, until: float) -> None:
        """Come again and again; every so often by a new connection."""
        while time.monotonic() < until:
            async with AsyncClient(self._target, retries=False) as client:
                for _ in range(self._chance.randrange(1, 40)):
                    if time.monotonic() >= until:
                        break
                    await self._once(client)

    async def _once(self, client: AsyncClient) -> None:
        """One request; at times the connection breaks under it."""
        choose = self._generate
        if self._sessions:
            choose = self._chance.choices(
                (self._generate, self._turn, self._fork, self._look, self._release),
                (10, 6, 2, 1, 1),
            )[0]
        if self._chance.random() < 0.03:
            await self._disconnect(choose)
            return
        await self._count(choose(client))

    async def _count(self, request: Any) -> None:
        try:
            outcome = await request
        except HeadwiseError as error:
            outcome = error.reason
            # no hurry after a refusal: what is refused makes no work
            await asyncio.sleep(error.retry_after_seconds or 0.0)
        self.outcomes[outcome] += 1

    async def _disconnect(self, choose: Any) -> None:
        """Close the whole connection a moment after asking."""
        client = AsyncClient(self._target, retries=False)
        request = asyncio.create_task(self._count(choose(client)))
        await asyncio.sleep(self._chance.choice((0.0, 0.005, 0.05, 0.3)))
        await client.close()
        # what gRPC tells a call whose channel is closed under it differs by the moment
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await request
        self.outcomes["disconnected"] += 1

    async def _generate(self, client: AsyncClient) -> str:
        chance = self._chance
        keep = chance.choice((0.0, *_KEPT_SECONDS))
        return await self._read(
            client, self._prompt(), policy=chance.choice(_POLICIES), session_ttl_seconds=keep
        )

    async def _turn(self, client: AsyncClient) -> str:
        keep = self._chance.choice((0.0, 0.0, *_KEPT_SECONDS))
        session_id = self._chance.choice(self._sessions)
        outcome = await self._read(
            client, self._prompt(), session_id=session_id, session_ttl_seconds=keep
        )
        return "turn" if outcome == "ended" else outcome

    async def _fork(self, client: AsyncClient) -> str:
        fork = await client.sessions.fork(self._chance.choice(self._sessions))
        self._sessions.append(fork.session_id)
        return "forked"

    async def _look(self, client: AsyncClient) -> str:
        for session in await client.sessions.list():
            assert session.tokens > 0
        await client.sessions.describe(self._chance.choice(self._sessions))
        return "described"

    async def _release(self, client: AsyncClient) -> str:
        session_id = self._sessions.popleft()
        await client.sessions.release(session_id)
        return "released"

    async def _read(self, client: AsyncClient, prompt: Any, **options: Any) -> str:
        """Read a generation until one of many ends."""
        chance = self._chance
        generation = client.generate(
            prompt,
            sampling=Sampling(
                temperature=chance.choice((0.0, 1.0)),
                seed=chance.randrange(2**32),
                n=chance.choice((0, 0, 0, 2)),
                logprobs=chance.choice((0, 0, 3)),
            ),
            max_tokens=chance.choice((1, 4, 40, 150, 150)),
            timeout_seconds=chance.choice((None, None, None, 0.02, 0.2)),
            **options,
        )
        leave_after = chance.choice((None, None, None, 0, 1, 7))
        made = 0
        try:
            async with asyncio.timeout(chance.choice((None, None, None, 0.0, 0.05))):
                if leave_after == 0:
                    return "left"
                async for _ in generation:
                    made += 1
                    if made == leave_after:
                        return "left"
                results = await generation.results()
        except TimeoutError:
            return "left"
        finally:
            generation.cancel()
        kept = (result.session_id for result in results)
        self._sessions.extend(session_id for session_id in kept if session_id)
        return "ended"

    def _prompt(self) -> Any:
        chance = self._chance
        length = chance.choice((1, 2, 30, 200, 900))
        text = " ".join(chance.choices(_WORDS, k=1 + length // 4))
        return chance.choice(
            (
                [chance.randrange(VOCABULARY) for _ in range(length)],
                text + ".",
                [Message("user", text)],
            )
        )


async def visits(target: str, visitors: int, seconds: float, seed: int) -> collections.Counter[str]:
    """Run `visitors` at once for `seconds`; returns the count of each outcome."""
    until = time.monotonic() + seconds
    crowd = [Visitor(target, seed * visitors + number) for number in range(visitors)]
    await asyncio.gather(*(visitor.visit(until) for visitor in crowd))
    total: collections.Counter[str] = collections.Counter()
    for visitor in crowd:
        total += visitor.outcomes
    return total

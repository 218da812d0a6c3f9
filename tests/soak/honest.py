"""Tenants with ordinary work, which measure what they wait and whether they lose anything."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import random
import time

from headwise import AsyncClient, HeadwiseError

_ANSWER_TOKENS = 24
_TTL_SECONDS = 600.0


@dataclasses.dataclass(slots=True)
class Seen:
    """Times and outcomes that tenants saw, in seconds."""

    first_token: list[float] = dataclasses.field(default_factory=list)
    between_tokens: list[float] = dataclasses.field(default_factory=list)
    outcomes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def add(self, other: Seen) -> None:
        self.first_token += other.first_token
        self.between_tokens += other.between_tokens
        self.outcomes += other.outcomes


class Tenant:
    """One tenant: a prompt, a turn on its session, a question to its stored cache, and a pause."""

    def __init__(self, target: str, name: str, seed: int) -> None:
        self._client = AsyncClient(target, tenant=name, retries=False)
        self._chance = random.Random(seed)
        self._handle = ""

    async def prepare(self) -> None:
        """Store a cache, which is asked about in every round."""
        prompt = self._prompt(200)
        self._handle = (await self._client.caches.keep(prompt, ttl_seconds=3_600)).handle

    async def work(self, until: float, pause_seconds: float) -> Seen:
        seen = Seen()
        while time.monotonic() < until:
            try:
                await self._round(seen)
            except HeadwiseError as error:
                seen.outcomes[error.reason] += 1
            await asyncio.sleep(pause_seconds * self._chance.random())
        return seen

    async def close(self) -> None:
        await self._client.close()

    async def _round(self, seen: Seen) -> None:
        session_id = await self._generate(seen, self._prompt(self._chance.randrange(50, 400)))
        await self._generate(seen, self._prompt(20), session_id=session_id)
        await self._client.sessions.release(session_id)
        await self._generate(seen, self._prompt(10), cache_handle=self._handle)
        seen.outcomes["round"] += 1

    async def _generate(self, seen: Seen, prompt: list[int], **options: str) -> str:
        """Generate; returns the session, which the last of a round's answers does not keep."""
        keep = 0.0 if "cache_handle" in options else _TTL_SECONDS
        asked = last = time.monotonic()
        generation = self._client.generate(
            prompt,
            max_tokens=_ANSWER_TOKENS,
            ignore_eos=True,
            session_ttl_seconds=keep,
            timeout_seconds=60,
            **options,
        )
        async for _ in generation:
            now = time.monotonic()
            (seen.between_tokens if last > asked else seen.first_token).append(now - last)
            last = now
        return (await generation.results())[0].session_id

    def _prompt(self, tokens: int) -> list[int]:
        return [self._chance.randrange(2, 500) for _ in range(tokens)]


async def work(tenants: list[Tenant], seconds: float, pause_seconds: float = 0.3) -> Seen:
    """Have all tenants work for `seconds`; returns what they saw together."""
    until = time.monotonic() + seconds
    together = Seen()
    for seen in await asyncio.gather(*(one.work(until, pause_seconds) for one in tenants)):
        together.add(seen)
    return together

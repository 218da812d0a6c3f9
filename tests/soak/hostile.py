"""A tenant that takes all it can get, as a process: `python -m tests.soak.hostile PREFILL DECODE`.

It does everything at once until its standard input ends, and counts how its calls ended.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import json
import os
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc

from headwise import AsyncClient, HeadwiseError, Message, Sampling
from headwise.connection import TENANT_KEY
from headwise.v1 import cache_pb2, decode_pb2, decode_pb2_grpc, prefill_pb2, prefill_pb2_grpc
from tests.security.http2_peer import http2_peer

TENANT = "hostile"
_METADATA = [(TENANT_KEY, TENANT)]
_LONG = 12_000
# what was refused is asked again at once, but for the time in which others on this machine run
_PAUSE_SECONDS = 0.02
# how long a reader that reads nothing stays
_STAY_SECONDS = 15.0
_GENERATE = "/headwise.v1.DecodeService/Generate"

Act = Callable[[], Awaitable[str]]


class Hostile:
    """Each method is one act, which a worker repeats; returns how it ended."""

    def __init__(self, prefill: str, decode: str) -> None:
        self._decode = decode
        self._client = AsyncClient(decode, tenant=TENANT, retries=False)
        self._prefill_channel = grpc.aio.insecure_channel(prefill)
        self._decode_channel = grpc.aio.insecure_channel(decode)
        self._numbers = itertools.count()
        self._chance = random.Random(1)

    def prompt(self, tokens: int) -> list[int]:
        """Return a prompt that no other is equal to."""
        first = next(self._numbers)
        return [2 + (first // 500 + 7 * place) % 500 for place in range(tokens - 1)] + [
            2 + first % 500
        ]

    async def stop_reading_prefill(self) -> str:
        request = prefill_pb2.PrefillRequest(
            token_ids=self.prompt(_LONG), policy=cache_pb2.Policy(name="full")
        )
        stub = prefill_pb2_grpc.PrefillServiceStub(self._prefill_channel)
        return await _stay(stub.Prefill(request, metadata=_METADATA))

    async def stop_reading_decode(self) -> str:
        request = decode_pb2.GenerateRequest(
            text="word",
            max_tokens=2_000,
            ignore_eos=True,
            sampling=decode_pb2.Sampling(logprobs=20, n=4, temperature=1.0),
        )
        stub = decode_pb2_grpc.DecodeServiceStub(self._decode_channel)
        return await _stay(stub.Generate(request, metadata=_METADATA))

    async def store_caches(self) -> str:
        tokens = self.prompt(self._chance.choice((200, 1_000, _LONG)))
        await self._client.caches.keep(tokens, ttl_seconds=3_600, timeout_seconds=60)
        return "stored"

    async def take_leases(self) -> str:
        await self._client.caches.keep([5, 6, 7], ttl_seconds=3_600, timeout_seconds=60)
        return "leased"

    async def fork(self) -> str:
        first = self._client.generate(self.prompt(50), max_tokens=2, session_ttl_seconds=600)
        session_id = (await first.results())[0].session_id
        for _ in range(300):
            session_id = (await self._client.sessions.fork(session_id)).session_id
        return "forked"

    async def answer_many(self) -> str:
        generation = self._client.generate(
            self.prompt(self._chance.choice((20, 2_000))),
            sampling=Sampling(n=8, temperature=1.0),
            max_tokens=400,
            session_ttl_seconds=600,
            timeout_seconds=self._chance.choice((1.0, 60.0)),
        )
        await generation.results()
        return "answered"

    async def send_huge_chat(self) -> str:
        await self._client.generate([Message("", "")] * 400_000, max_tokens=1).text()
        return "answered"

    async def leave_messages_unfinished(self) -> str:
        await asyncio.to_thread(self._unfinished)
        return "unfinished"

    def _unfinished(self) -> None:
        with http2_peer(int(self._decode.rpartition(":")[2])) as peer:
            for _ in range(20):
                stream = peer.begin(_GENERATE, [(TENANT_KEY, TENANT)])
                # a message of 4 MB that never ends
                peer.send(stream, b"\0" + (4 << 20).to_bytes(4, "big") + bytes(1 << 16))


async def _stay(call: grpc.aio.UnaryStreamCall[object, object]) -> str:
    """Read one message of a stream, and no other."""
    try:
        await asyncio.wait_for(call.read(), _STAY_SECONDS)
        await asyncio.sleep(_STAY_SECONDS)
    finally:
        call.cancel()
    return "stayed"


async def _repeat(name: str, act: Act, outcomes: collections.Counter[str]) -> None:
    while True:
        try:
            outcome = await act()
        except HeadwiseError as error:
            outcome = error.reason
        except (grpc.RpcError, TimeoutError, OSError, ValueError) as error:
            outcome = type(error).__name__
        outcomes[f"{name}: {outcome}"] += 1
        await asyncio.sleep(_PAUSE_SECONDS)


@contextlib.asynccontextmanager
async def _working(hostile: Hostile, outcomes: collections.Counter[str]) -> AsyncIterator[None]:
    acts = {
        hostile.stop_reading_prefill: 4,
        hostile.stop_reading_decode: 4,
        hostile.store_caches: 8,
        hostile.take_leases: 2,
        hostile.fork: 2,
        hostile.answer_many: 8,
        hostile.send_huge_chat: 1,
        hostile.leave_messages_unfinished: 1,
    }
    workers = [
        asyncio.create_task(_repeat(act.__name__, act, outcomes))
        for act, count in acts.items()
        for _ in range(count)
    ]
    try:
        yield
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.wait(workers, timeout=5)


async def _main(prefill: str, decode: str) -> None:
    outcomes: collections.Counter[str] = collections.Counter()
    async with _working(Hostile(prefill, decode), outcomes):
        await asyncio.to_thread(sys.stdin.read)
    sys.stdout.write(json.dumps(outcomes))
    sys.stdout.flush()
    # threads and channels that are stuck must not hold the process
    os._exit(0)


if __name__ == "__main__":
    # the services, and those who measure, come first on a machine of few cores
    os.nice(10)
    asyncio.run(_main(*sys.argv[1:3]))

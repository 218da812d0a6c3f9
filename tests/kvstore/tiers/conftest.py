"""The tiers under test, over real stores that each session starts once."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import subprocess
from collections.abc import Iterator
from typing import TypeAlias

import pytest

from kvstore.tiers.base import Tier
from kvstore.tiers.bounded import BoundedTier
from kvstore.tiers.disk import DiskTier
from kvstore.tiers.ledger import Budget
from kvstore.tiers.memory import MemoryTier
from kvstore.tiers.mooncake import MooncakeTier
from kvstore.tiers.mooncake_client import MooncakeAddress, MooncakeClient, connect_mooncake
from kvstore.tiers.redis import RedisOptions, RedisTier
from kvstore.tiers.redis_client import RedisAddress
from kvstore.tiers.stack import TierStack
from tests.kvstore.tiers.clock import Clock
from tests.kvstore.tiers.servers import (
    RedisServer,
    connected,
    running_cluster,
    running_mooncake,
    running_valkey,
)

ALL_TIERS = (
    "memory",
    "disk",
    "valkey",
    "cluster",
    "cluster_together",
    "mooncake",
    "stacked",
)
BUDGET = Budget(1 << 20)
# small, so that even a tiny cache has several chunks and batches
SMALL_CHUNKS = RedisOptions(chunk_bytes=100, batch_chunks=3)

Mooncake: TypeAlias = tuple[subprocess.Popen[bytes], MooncakeAddress, MooncakeClient]


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisServer]]:
    with running_cluster(tmp_path_factory.mktemp("cluster")) as nodes:
        yield nodes


@pytest.fixture(scope="session")
def mooncake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mooncake]:
    with running_mooncake(tmp_path_factory.mktemp("mooncake")) as (process, address):
        client = connect_mooncake(address)
        yield process, address, client
        client.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


class TierMaker:
    """Makes tiers by name; shared stores keep what earlier tests put."""

    def __init__(self, request: pytest.FixtureRequest, folder: pathlib.Path, clock: Clock) -> None:
        self._request = request
        self._folder = folder
        self._clock = clock
        self.stack = contextlib.ExitStack()

    def __call__(self, name: str) -> Tier:
        return getattr(self, name)()

    def memory(self) -> Tier:
        return MemoryTier(BUDGET, clock=self._clock)

    def disk(self) -> Tier:
        inner = DiskTier(self._folder, BUDGET, clock=self._clock)
        self.stack.callback(inner.close)
        return self.bounded(inner)

    def valkey(self) -> Tier:
        return self._redis(self._request.getfixturevalue("valkey").address, SMALL_CHUNKS)

    def cluster(self) -> Tier:
        node = self._request.getfixturevalue("cluster")[0]
        return self._redis(node.cluster_address, SMALL_CHUNKS)

    def cluster_together(self) -> Tier:
        node = self._request.getfixturevalue("cluster")[0]
        return self._redis(node.cluster_address, dataclasses.replace(SMALL_CHUNKS, spread=False))

    def mooncake(self) -> Tier:
        client = self._request.getfixturevalue("mooncake")[2]
        return self.bounded(MooncakeTier(client, clock=self._clock))

    def stacked(self) -> Tier:
        """A memory that is too small for anything, over a disk."""
        above = MemoryTier(Budget(0), clock=self._clock)
        stack = TierStack([above, self.disk()], clock=self._clock)
        self.stack.callback(stack.close)
        return stack

    def bounded(self, inner: Tier) -> Tier:
        tier = BoundedTier(inner)
        self.stack.callback(tier.close)
        return tier

    def _redis(self, address: RedisAddress, options: RedisOptions) -> Tier:
        client = self.stack.enter_context(connected(address))
        return self.bounded(RedisTier(client, options, clock=self._clock))


@pytest.fixture
def make_tier(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, clock: Clock
) -> Iterator[TierMaker]:
    maker = TierMaker(request, tmp_path_factory.mktemp("disk"), clock)
    with maker.stack:
        yield maker


@pytest.fixture(params=ALL_TIERS)
def tier(request: pytest.FixtureRequest, make_tier: TierMaker) -> Tier:
    """Every kind of tier in turn."""
    return make_tier(request.param)

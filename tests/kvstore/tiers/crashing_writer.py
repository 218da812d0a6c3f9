"""A process that writes caches to a tier for ever, one fork for each line it reads.

A line is `disk FOLDER SEED` or `redis URL SEED`; the answer is the process id of the fork that now
writes, which is there to be killed. Started once, because importing torch takes seconds.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import random
import signal
import sys
from collections.abc import Callable

import torch

from kvstore.cache import CompactCache, digest_tokens
from kvstore.tiers.base import Tier
from kvstore.tiers.content_key import ContentKey
from kvstore.tiers.deadline import Deadline
from kvstore.tiers.disk import DiskTier
from kvstore.tiers.ledger import Budget
from kvstore.tiers.redis import RedisOptions, RedisTier
from kvstore.tiers.redis_client import RedisAddress, connect_redis
from tests.kvstore.wire.caches import RULES, fingerprint, ragged_layer

_IDENTITIES = {
    ContentKey.of(one, "crash"): one
    for one in (
        dataclasses.replace(fingerprint("float16"), token_digest=digest_tokens([number]))
        for number in range(6)
    )
}
KEYS = tuple(_IDENTITIES)
# four of the six
BUDGET_BYTES = 1_300_000


def cache_of(key: ContentKey) -> CompactCache:
    """Return the cache that is written under a key, always the same: 300 kB."""
    seed = KEYS.index(key)
    layers = tuple(
        ragged_layer((300, 280), (RULES[1], RULES[4]), 64, torch.float16, seed + n, 400)
        for n in range(2)
    )
    return CompactCache(_IDENTITIES[key], layers, 400)


def open_tier(kind: str, place: str) -> Tier:
    if kind == "disk":
        return DiskTier(place, Budget(BUDGET_BYTES))
    return RedisTier(connect_redis(RedisAddress(place)), RedisOptions(chunk_bytes=1 << 16))


def write_for_ever(tier: Tier, caches: dict[ContentKey, CompactCache], seed: int) -> None:
    chance = random.Random(seed)
    while True:
        key = chance.choice(KEYS)
        if chance.random() < 0.1:
            tier.delete(key, Deadline.after(60))
        else:
            result = tier.put(key, caches[key], chance.choice((None, 3600.0)), Deadline.after(60))
            assert result.stored, result


def _fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            # the parent's clean-up is not this process's to run
            os._exit(1)
    return child


def main() -> None:
    torch.set_num_threads(1)
    # nobody waits for those that were killed
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # before the forks, so that they begin with their first put
    caches = {key: cache_of(key) for key in KEYS}
    importlib.import_module("redis")
    for line in sys.stdin:
        kind, place, seed = line.split(" ")
        child = _fork(
            lambda kind=kind, place=place, seed=seed: write_for_ever(
                open_tier(kind, place), caches, int(seed)
            )
        )
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

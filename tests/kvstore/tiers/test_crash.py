"""The writing process is killed at random points: every key is absent or right to the bit."""

from __future__ import annotations

import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from kvstore.cache import CompactCache
from kvstore.tiers.base import Hit, MissReason, Tier
from kvstore.tiers.deadline import Deadline
from kvstore.tiers.disk import DiskTier
from kvstore.tiers.stored_form import CacheWriter
from tests.kvstore.tiers.crashing_writer import BUDGET_BYTES, KEYS, cache_of, open_tier
from tests.kvstore.tiers.servers import RedisServer

CACHES = {key: cache_of(key) for key in KEYS}
_ROUNDS, _SOAK_ROUNDS = 8, 200
# from before the first file is open to several puts later
_LONGEST_LIFE_SECONDS = 0.15
_GONE = (MissReason.ABSENT, MissReason.EVICTED)
_SECONDS = 30.0


@pytest.fixture(scope="module")
def writer() -> Iterator[subprocess.Popen[str]]:
    """Forks a writer for each line."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.kvstore.tiers.crashing_writer"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=pathlib.Path(__file__).parents[3],
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def kill_writers(
    writer: subprocess.Popen[str], what: str, rounds: int, check: Callable[[], int]
) -> int:
    """Kill `rounds` writers at random moments; returns the hits of all checks after them."""
    assert writer.stdin is not None
    assert writer.stdout is not None
    chance = random.Random(rounds)
    hits = 0
    for seed in range(rounds):
        writer.stdin.write(f"{what} {seed}\n")
        writer.stdin.flush()
        child = int(writer.stdout.readline())
        time.sleep(chance.uniform(0, _LONGEST_LIFE_SECONDS))
        os.kill(child, signal.SIGKILL)
        _wait_until_gone(child)
        hits += check()
    return hits


def _wait_until_gone(child: int) -> None:
    until = time.monotonic() + _SECONDS
    while pathlib.Path(f"/proc/{child}").exists():
        assert time.monotonic() < until
        time.sleep(0.002)


def stored_form(cache: CompactCache) -> bytes:
    """Every bit of it."""
    writer = CacheWriter(cache)
    body = b"".join(writer.pieces())
    return writer.head() + body


def count_hits(tier: Tier) -> int:
    """Count the keys found; each must be equal to the bit, or missing with a valid reason."""
    hits = 0
    for key, cache in CACHES.items():
        found = tier.get(key, cache.fingerprint, Deadline.after(_SECONDS))
        if isinstance(found, Hit):
            assert stored_form(found.cache) == stored_form(cache)
            hits += 1
        else:
            assert found.reason in _GONE, found
    return hits


def check_disk(folder: pathlib.Path) -> int:
    """Check the folder as a process that starts after the crash."""
    tier = open_tier("disk", str(folder))
    assert isinstance(tier, DiskTier)
    try:
        files = [path for path in folder.glob("*/*") if path.is_file()]
        assert all(path.suffix == ".safetensors" for path in files), files
        held = tier.bytes_in_use(None, Deadline.after(_SECONDS))
        assert held == sum(path.stat().st_size for path in files) <= BUDGET_BYTES
        hits = count_hits(tier)
        # files under their final names are whole: nothing was found to be corrupt
        assert hits == len(files)
        return hits
    finally:
        tier.close()


@pytest.mark.parametrize("rounds", [_ROUNDS, pytest.param(_SOAK_ROUNDS, marks=pytest.mark.soak)])
def test_files_survive_a_crash_at_any_point(
    writer: subprocess.Popen[str], tmp_path: pathlib.Path, rounds: int
) -> None:
    hits = kill_writers(writer, f"disk {tmp_path}", rounds, lambda: check_disk(tmp_path))
    # it was killed in the midst of work, not before it began
    assert hits >= rounds


@pytest.mark.parametrize("rounds", [_ROUNDS, pytest.param(_SOAK_ROUNDS, marks=pytest.mark.soak)])
def test_a_half_written_cache_in_valkey_is_a_miss(
    writer: subprocess.Popen[str], valkey: RedisServer, rounds: int
) -> None:
    url = valkey.address.url
    tier = open_tier("redis", url)
    hits = kill_writers(writer, f"redis {url}", rounds, lambda: count_hits(tier))
    assert hits >= rounds

"""Put and get of a real-shaped cache in every tier, against the tier's own raw client.

Both move the same number of bytes and take turns, and each is judged by its fastest round: all
others measure what else the machine had to do. The raw client stores one value; the tier besides
checks, checksums, cuts, names and replaces it, and its gets end in tensors known to be whole.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import pathlib
import tempfile
import time
from collections.abc import Callable

import pytest
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.random_caches import coverage_rules, random_layer
from benchmarks.store_peers import (
    Contestants,
    disk,
    disk_bytes,
    memory,
    mooncake,
    redis_cluster,
    valkey,
)
from kvstore.cache import CompactCache, Fingerprint, LayerShape, ModelFingerprint, digest_tokens
from kvstore.tiers.base import Hit
from kvstore.tiers.content_key import ContentKey
from kvstore.tiers.deadline import Deadline
from kvstore.tiers.stored_form import CacheWriter

# SmolLM2-135M's; with rows of two bytes an element 4,096 tokens make about 20 MB
_SHAPES = (LayerShape(3, 9, 64),) * 30
_KEPT_RATIO = 0.2
_TIMEOUT_SECONDS = 60.0
_TARGET = 0.8
# a checksum alone takes as long as this peer's copy out of the page cache: told, not aimed at
_WITHOUT_TARGET = ("disk_bytes",)

STORES = {
    "memory": memory,
    "disk": disk,
    "disk_bytes": disk_bytes,
    "valkey": valkey,
    "redis_cluster": redis_cluster,
    "mooncake": mooncake,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Seconds:
    """One entry a round."""

    ours: list[float] = dataclasses.field(default_factory=list)
    raw: list[float] = dataclasses.field(default_factory=list)

    def ratio(self) -> float:
        """Our speed over the raw client's."""
        return min(self.raw) / min(self.ours)


@dataclasses.dataclass(frozen=True, slots=True)
class Contest:
    """Times of one store's rounds."""

    peer: str
    nbytes: int
    put: Seconds
    get: Seconds

    def speed(self, seconds: list[float]) -> float:
        """GB/s in the fastest round."""
        return self.nbytes / min(seconds) / 1e9


def random_cache(tokens: int) -> CompactCache:
    """A cache of random rows whose heads are of coverage's sizes."""
    torch.manual_seed(0)
    heads = coverage_rules(_SHAPES, tokens, _KEPT_RATIO)
    layers = tuple(random_layer(layer, tokens, 64, torch.float16) for layer in heads)
    model = ModelFingerprint("smollm2", "main", "a" * 64, "b" * 64, "float16")
    fingerprint = Fingerprint(model, digest_tokens(range(tokens)), "coverage", "{}")
    return CompactCache(fingerprint, layers, tokens)


def hold(contestants: Contestants, cache: CompactCache, nbytes: int, rounds: int) -> Contest:
    """Let tier and raw client take turns; the first round warms both up and is not counted."""
    key = ContentKey.of(cache.fingerprint)
    contest = Contest(contestants.peer, nbytes, Seconds(), Seconds())

    def put() -> None:
        result = contestants.tier.put(key, cache, None, Deadline.after(_TIMEOUT_SECONDS))
        assert result.stored, result

    def get() -> None:
        found = contestants.tier.get(key, cache.fingerprint, Deadline.after(_TIMEOUT_SECONDS))
        assert isinstance(found, Hit), found

    for number in range(-1, rounds):
        for seconds, raw, ours in (
            (contest.put, contestants.raw_put, put),
            (contest.get, contestants.raw_get, get),
        ):
            taken = _taken(raw), _taken(ours)
            if number >= 0:
                seconds.raw.append(taken[0])
                seconds.ours.append(taken[1])
    return contest


def _taken(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(names: list[str], tokens: int, rounds: int) -> dict[str, Contest]:
    """Every store in turn; one whose parts are not installed is left out."""
    cache = random_cache(tokens)
    writer = CacheWriter(cache)
    nbytes = writer.head_bytes + writer.body_bytes
    contests = {}
    for name in names:
        with (
            contextlib.suppress(pytest.skip.Exception),
            tempfile.TemporaryDirectory() as folder,
            STORES[name](pathlib.Path(folder), cache, bytes(nbytes)) as contestants,
        ):
            contests[name] = hold(contestants, cache, nbytes, rounds)
    return contests


def figures(contests: dict[str, Contest]) -> dict[str, dict[str, object]]:
    """Return the figures by name, in the form of every benchmark."""
    return {
        f"{name}_{what}_ratio": {
            "value": seconds.ratio(),
            "unit": "ratio",
            "against": contest.peer,
            "target": _TARGET,
        }
        for name, contest in contests.items()
        if name not in _WITHOUT_TARGET
        for what, seconds in (("put", contest.put), ("get", contest.get))
    }


def _table(contests: dict[str, Contest]) -> Table:
    nbytes = next(iter(contests.values())).nbytes
    table = Table(title=f"A cache of {nbytes / 1e6:.1f} MB, GB/s (raw client's)")
    for column in ("tier", "put", "put ratio", "get", "get ratio", "raw client"):
        table.add_column(column, justify="left" if column in ("tier", "raw client") else "right")
    for name, contest in contests.items():
        cells = [name]
        for seconds in (contest.put, contest.get):
            ours, raw = contest.speed(seconds.ours), contest.speed(seconds.raw)
            cells += [f"{ours:.2f} ({raw:.2f})", f"{seconds.ratio():.2f}"]
        table.add_row(*cells, contest.peer)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tiers", nargs="*", choices=tuple(STORES), default=list(STORES))
    parser.add_argument("--json", type=pathlib.Path, help="write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    contests = measure(arguments.tiers, arguments.tokens, arguments.rounds)
    Console().print(_table(contests))
    if arguments.json:
        text = json.dumps({"figures": figures(contests)}, indent=2)
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()

"""Each tier beside the raw client of its own store: the same bytes, without keys, checks or TTL."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator

import torch
from redis import Redis
from redis.cluster import RedisCluster
from safetensors.torch import load_file, save_file

from kvstore.cache import CompactCache
from kvstore.tiers.base import Tier
from kvstore.tiers.bounded import BoundedTier
from kvstore.tiers.disk import DiskTier
from kvstore.tiers.ledger import Budget
from kvstore.tiers.memory import MemoryTier
from kvstore.tiers.mooncake import MooncakeTier
from kvstore.tiers.mooncake_client import MooncakeAddress, connect_mooncake
from kvstore.tiers.redis import RedisTier
from kvstore.tiers.redis_client import RedisAddress, connect_redis
from tests.kvstore.tiers.servers import running_cluster, running_mooncake, running_valkey

_BUDGET = Budget(1 << 30)
_LENT_BYTES = 1 << 30

# a process that lends the store memory, so that values do cross a socket
_LENDER = """
import sys
from kvstore.tiers.mooncake_client import MooncakeAddress, connect_mooncake
lender = connect_mooncake(MooncakeAddress(sys.argv[1], sys.argv[2], segment_bytes=int(sys.argv[3])))
print("ready", flush=True)
sys.stdin.read()
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Contestants:
    """A tier and its peer. `raw_put` stores the bytes anew, `raw_get` returns them."""

    tier: Tier
    peer: str
    raw_put: Callable[[], object]
    raw_get: Callable[[], object]


def _tensors(cache: CompactCache) -> list[torch.Tensor]:
    return [t for x in cache.layers for t in (x.keys, x.values, x.positions, x.scores, x.flags)]


@contextlib.contextmanager
def memory(folder: pathlib.Path, cache: CompactCache, raw: bytes) -> Iterator[Contestants]:
    tensors = _tensors(cache)
    held: dict[str, list[torch.Tensor]] = {}

    def put() -> None:
        held["key"] = [tensor.clone() for tensor in tensors]

    yield Contestants(
        MemoryTier(_BUDGET),
        "a dictionary of cloned tensors",
        put,
        lambda: [tensor.clone() for tensor in held["key"]],
    )


@contextlib.contextmanager
def disk(folder: pathlib.Path, cache: CompactCache, raw: bytes) -> Iterator[Contestants]:
    """Compare with the file format's own library, whose load only maps the file."""
    path, temporary = folder / "raw", folder / "raw.new"
    tensors = {f"{n}": tensor for n, tensor in enumerate(_tensors(cache))}

    def put() -> None:
        save_file(tensors, temporary)
        _sync_and_rename(temporary, path)

    with _disk_tier(folder) as tier:
        yield Contestants(
            tier,
            "safetensors: save_file, fsync; load_file, clone",
            put,
            lambda: {name: tensor.clone() for name, tensor in load_file(path).items()},
        )


@contextlib.contextmanager
def disk_bytes(folder: pathlib.Path, cache: CompactCache, raw: bytes) -> Iterator[Contestants]:
    """Compare with one write and one read of the same bytes from the page cache."""
    path, temporary = folder / "raw", folder / "raw.new"

    def put() -> None:
        temporary.write_bytes(raw)
        _sync_and_rename(temporary, path)

    with _disk_tier(folder) as tier:
        yield Contestants(tier, "write, fsync; read of one buffer", put, path.read_bytes)


@contextlib.contextmanager
def _disk_tier(folder: pathlib.Path) -> Iterator[BoundedTier]:
    inner = DiskTier(folder / "tier", _BUDGET)
    with _bounded(inner) as tier:
        yield tier
    inner.close()


def _sync_and_rename(temporary: pathlib.Path, path: pathlib.Path) -> None:
    """Sync the file and its folder, so that the write is as durable as the tier's."""
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def _sync(path: pathlib.Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


@contextlib.contextmanager
def valkey(folder: pathlib.Path, cache: CompactCache, raw: bytes) -> Iterator[Contestants]:
    with (
        running_valkey(folder) as server,
        Redis(port=server.port, protocol=2) as client,
        _redis(server.address) as tier,
    ):
        yield Contestants(
            tier,
            "redis-py SET and GET of one value",
            lambda: client.set("raw", raw),
            lambda: client.get("raw"),
        )


@contextlib.contextmanager
def redis_cluster(folder: pathlib.Path, cache: CompactCache, raw: bytes) -> Iterator[Contestants]:
    with running_cluster(folder) as nodes:
        client = RedisCluster(host="127.0.0.1", port=nodes[0].port, protocol=2)
        with _redis(nodes[0].cluster_address) as tier:
            yield Contestants(
                tier,
                "redis-py SET and GET of one value",
                lambda: client.set("raw", raw),
                lambda: client.get("raw"),
            )
        client.close()


@contextlib.contextmanager
def mooncake(folder: pathlib.Path, cache: CompactCache, raw: bytes) -> Iterator[Contestants]:
    with running_mooncake(folder) as (_, address), _lender(address):
        client = connect_mooncake(dataclasses.replace(address, segment_bytes=0))

        def put() -> None:
            # an object is never overwritten by put
            client.remove("raw", True)
            assert client.put_parts("raw", raw) == 0

        with _bounded(MooncakeTier(client)) as tier:
            yield Contestants(tier, "its client's put and get", put, lambda: client.get("raw"))
        client.close()


@contextlib.contextmanager
def _bounded(inner: DiskTier | RedisTier | MooncakeTier) -> Iterator[BoundedTier]:
    tier = BoundedTier(inner)
    yield tier
    tier.close()


@contextlib.contextmanager
def _redis(address: RedisAddress) -> Iterator[BoundedTier]:
    client = connect_redis(address)
    with _bounded(RedisTier(client)) as tier:
        yield tier
    client.close()


@contextlib.contextmanager
def _lender(address: MooncakeAddress) -> Iterator[None]:
    command = [sys.executable, "-c", _LENDER, address.master, address.metadata_url]
    with subprocess.Popen(
        [*command, str(_LENT_BYTES)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        # its client logs to standard output as well
        while b"ready" not in process.stdout.readline():
            assert process.poll() is None, "the lender ended"
        yield
        process.kill()

"""A running prefill keeps caches in a Redis behind TLS and a password, and tells neither."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import grpc
import pytest
from click.testing import CliRunner

from headwise.caches import CacheCalls
from headwise.connection import Connection
from headwise.v1 import store_pb2_grpc
from services.commands import command_line
from services.demo.processes import Service, running_service
from tests.kvstore.tiers.servers import RedisServer, running_private_redis
from tests.observe import scrape
from tests.security.certificates import Authority
from tests.security.tokens import write

pytestmark = pytest.mark.processes

_PASSWORD = "store-password-4d81e0"
_DOCUMENT = "What is kept in confidence is kept in a store that keeps it too. " * 8


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def redis(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_private_redis(tmp_path_factory.mktemp("redis"), authority, _PASSWORD) as server:
        yield server


def _flags(redis: RedisServer, authority: Authority, password: Path) -> list[str]:
    pair = authority.issue("prefill")
    files = {
        "ssl_ca_certs": authority.file,
        "ssl_certfile": pair.certificate,
        "ssl_keyfile": pair.key,
    }
    return [
        *("--store-memory-bytes", "0", "--store-write", "through", "--log-level", "DEBUG"),
        *("--store-redis", f"{redis.private_url}?{urlencode(files)}"),
        *("--store-redis-password", str(password)),
    ]


def _keep(prefill: Service) -> str:
    """The key of the document, kept."""
    with grpc.insecure_channel(prefill.target) as channel:
        connection = Connection(prefill.target)
        calls = CacheCalls(store_pb2_grpc.CacheServiceStub(channel), connection)
        return calls.keep(_DOCUMENT, ttl_seconds=60, policy="full").key


def _written_by(prefill: Service) -> str:
    """Log, metrics, and what anybody on the machine sees of the process."""
    with urllib.request.urlopen(prefill.metrics_url, timeout=10) as answer:
        metrics = answer.read().decode()
    process = Path("/proc", str(prefill.process.pid))
    seen = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
    return prefill.log.read_text() + metrics + seen.decode()


def test_a_cache_is_stored_and_the_password_is_not_logged(
    tiny_model: Path, redis: RedisServer, authority: Authority, tmp_path: Path
) -> None:
    password = write(tmp_path / "password", _PASSWORD)
    flags = ["--model", str(tiny_model), *_flags(redis, authority, password)]
    with running_service("prefill", flags) as prefill:
        key = _keep(prefill)
        # without memory of its own, it is Redis that has it
        assert _keep(prefill) == key
        told = scrape(prefill.metrics_url)
        assert told["headwise_store_puts_total{outcome=stored,tier=redis}"] == 1
        assert told["headwise_store_hits_total{tier=redis}"] == 1
        assert told["headwise_prefills_reused_total"] == 1
        written = _written_by(prefill)
    printed = CliRunner().invoke(command_line, ["prefill", *flags, "--print-config"])
    assert printed.exit_code == 0
    for text in (written, printed.output):
        assert "--store-redis-password" in text
        assert _PASSWORD not in text

"""A real Redis behind mutual TLS and a password: who lacks any of it finds nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore.tiers import Hit, Miss, MissReason, Tier, WriteMode
from kvstore.tiers.content_key import ContentKey
from kvstore.tiers.deadline import Deadline
from kvstore.tiers.redis_client import connect_redis
from kvstore.wire import DEFAULT_LIMITS
from services.prefill.store.cache_store import CacheStore, StoreLimits
from services.prefill.store.redis_access import redis_address
from services.prefill.store.store_options import StoreOptions
from services.prefill.store.stores import memory_tier, tiers_below
from services.runtime.process.serve_error import ServeError
from tests.kvstore.tiers.servers import running_private_redis
from tests.kvstore.wire.caches import same, two_layers
from tests.security.certificates import Authority, Pair, replace

CACHE, _ = two_layers("float16")
KEY = ContentKey.of(CACHE.fingerprint, "private")
PASSWORD = "store-password-3b1c77"
SECONDS = 10.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def options(authority: Authority, tmp_path: Path) -> Iterator[StoreOptions]:
    """All it takes, of a server of this test's own."""
    pair, password = authority.issue("prefill"), tmp_path / "password"
    password.write_text(PASSWORD + "\n")
    with running_private_redis(tmp_path, authority, PASSWORD) as server:
        yield StoreOptions(
            store_redis=_url(server.private_url, authority.file, pair),
            store_redis_password=str(password),
        )


def _url(address: str, ca: Path | None = None, pair: Pair | None = None) -> str:
    files = {
        "ssl_ca_certs": ca,
        "ssl_certfile": pair and pair.certificate,
        "ssl_keyfile": pair and pair.key,
    }
    query = "&".join(f"{name}={file}" for name, file in files.items() if file)
    return f"{address}?{query}" if query else address


@contextlib.contextmanager
def _tier(options: StoreOptions) -> Iterator[Tier]:
    (tier,) = tiers_below(options, DEFAULT_LIMITS)
    yield tier
    tier.close()


def _refusal(options: StoreOptions) -> Miss:
    with _tier(options) as tier:
        lookup = tier.get(KEY, CACHE.fingerprint, Deadline.after(SECONDS))
    assert isinstance(lookup, Miss)
    assert PASSWORD not in lookup.detail
    return lookup


def test_tls_and_credentials_are_all_required(
    options: StoreOptions, authority: Authority, tmp_path: Path
) -> None:
    with _tier(options) as tier:
        assert tier.put(KEY, CACHE, 60.0, Deadline.after(SECONDS)).stored
        lookup = tier.get(KEY, CACHE.fingerprint, Deadline.after(SECONDS))
    assert isinstance(lookup, Hit)
    assert same(lookup.cache, CACHE)
    stranger, wrong = Authority(tmp_path / "stranger"), tmp_path / "wrong"
    own, foreign = authority.issue("prefill"), stranger.issue("prefill")
    wrong.write_text("another-password")
    address = options.store_redis.partition("?")[0]
    for change in (
        {"store_redis_password": ""},
        {"store_redis_password": str(wrong)},
        {"store_redis": _url(address, stranger.file, own)},
        {"store_redis": _url(address, None, own)},
        {"store_redis": _url(address, authority.file)},
        {"store_redis": _url(address, authority.file, foreign)},
    ):
        assert _refusal(dataclasses.replace(options, **change)).reason is MissReason.UNAVAILABLE


def test_a_certificate_for_another_name_is_not_trusted(options: StoreOptions) -> None:
    # the server's is for 127.0.0.1 and localhost
    elsewhere = options.store_redis.replace("127.0.0.1", "127.0.0.2")
    miss = _refusal(dataclasses.replace(options, store_redis=elsewhere))
    assert miss.reason is MissReason.UNAVAILABLE


def test_a_password_file_overrides_a_password_in_the_address(
    options: StoreOptions,
) -> None:
    for user in ("default", "default:not-this-one", ":nor-this-one"):
        url = options.store_redis.replace("//", f"//{user}@")
        client = connect_redis(redis_address(dataclasses.replace(options, store_redis=url)))
        assert client.get("nothing") is None
        client.close()


def test_a_new_password_is_used_without_a_restart(options: StoreOptions) -> None:
    changed = "store-password-9a04e2"
    with _tier(options) as tier:
        assert tier.put(KEY, CACHE, 60.0, Deadline.after(SECONDS)).stored
        client = connect_redis(redis_address(options))
        command = getattr(client, "execute_command")  # noqa: B009
        command("CONFIG", "SET", "requirepass", changed)
        command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        client.close()
        refused = tier.get(KEY, CACHE.fingerprint, Deadline.after(SECONDS))
        assert isinstance(refused, Miss)
        assert refused.reason is MissReason.UNAVAILABLE
        replace(Path(options.store_redis_password), changed.encode())
        assert isinstance(tier.get(KEY, CACHE.fingerprint, Deadline.after(SECONDS)), Hit)


def test_files_that_cannot_be_used_stop_the_start(authority: Authority, tmp_path: Path) -> None:
    pair, text = authority.issue("prefill"), tmp_path / "text"
    text.write_text(f"two lines\n{PASSWORD}")
    address = "rediss://127.0.0.1:1"
    good = StoreOptions(store_redis=address)
    for change, said in (
        ({"store_redis_password": str(tmp_path / "nowhere")}, "--store-redis-password"),
        ({"store_redis_password": str(text)}, "--store-redis-password"),
        ({"store_redis": _url(address, text)}, "cannot use"),
        ({"store_redis": f"{address}?ssl_certfile={pair.certificate}"}, "belong together"),
        ({"store_redis": _url("redis://127.0.0.1:1", authority.file)}, "rediss"),
        ({"store_redis": f"{address}?cluster=yes"}, "neither true nor false"),
    ):
        with pytest.raises(ServeError, match=said) as caught:
            tiers_below(dataclasses.replace(good, **change), DEFAULT_LIMITS)
        assert PASSWORD not in str(caught.value)


def test_a_password_in_plain_text_is_warned_of_and_shown_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "password"
    file.write_text(PASSWORD)
    options = StoreOptions(store_redis="redis://store:6379", store_redis_password=str(file))
    with caplog.at_level(logging.WARNING):
        address = redis_address(options)
    assert "plain text" in caplog.text
    assert PASSWORD not in caplog.text + repr(address)


async def test_a_wrong_password_is_told_once_and_not_repeated_in_words(
    options: StoreOptions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("another-password")
    below = tiers_below(
        dataclasses.replace(options, store_redis_password=str(wrong)), DEFAULT_LIMITS
    )
    memory = memory_tier(options)
    limits = StoreLimits(
        timeout_seconds=SECONDS, max_keep_seconds=100, max_leases=1, keeps_prompts=False
    )
    model = CACHE.fingerprint.model
    store = CacheStore(memory, [memory, *below], model, limits, mode=WriteMode.THROUGH)
    with caplog.at_level(logging.INFO, "headwise.store"):
        for _ in range(3):
            assert isinstance(await store.lookup(KEY, CACHE.fingerprint), Miss)
    await store.close()
    (line,) = [record.getMessage() for record in caplog.records if "fails" in record.message]
    assert "redis" in line
    assert "WRONGPASS" in line or "invalid username-password" in line
    assert "another-password" not in line

"""Connections to Redis or Valkey, single or Cluster, through redis-py."""

from __future__ import annotations

import dataclasses
import threading
import urllib.parse
from collections.abc import Callable
from typing import Any, Protocol, cast

from kvstore.errors import InvalidParameter


class RedisPipeline(Protocol):
    """Commands that go out together; `execute` gives their answers in order."""

    def set(self, name: str, value: bytes, ex: int) -> object: ...

    def get(self, name: str) -> object: ...

    def pexpire(self, name: str, time: int) -> object: ...

    def unlink(self, name: str) -> object: ...

    def zrem(self, name: str, member: str) -> object: ...

    def zadd(self, name: str, mapping: dict[str, float]) -> object: ...

    def sadd(self, name: str, member: str) -> object: ...

    def expire(self, name: str, time: int) -> object: ...

    def execute(self) -> list[object]: ...


class RedisClient(Protocol):
    """The methods used of redis-py's `Redis` and `RedisCluster`, where answers are bytes."""

    # before the method `set`, which hides the type
    def smembers(self, name: str) -> set[bytes]: ...

    def pipeline(self, transaction: bool) -> RedisPipeline: ...

    def get(self, name: str) -> bytes | None: ...

    def getdel(self, name: str) -> bytes | None: ...

    def set(
        self,
        name: str,
        value: bytes,
        ex: int | None = None,
        px: int | None = None,
        get: bool = False,
    ) -> object: ...

    def zrange(self, name: str, start: int, end: int) -> list[bytes]: ...

    def zremrangebyscore(self, name: str, low: str, high: float) -> object: ...

    def close(self) -> None: ...


@dataclasses.dataclass(frozen=True, slots=True)
class RedisTls:
    """Paths of PEM files, read for each new connection; "" for none.

    `ca`: authorities that servers are checked against, else the system's. `certificate` and `key`:
    the client's own.
    """

    ca: str = ""
    certificate: str = ""
    key: str = ""

    def options(self) -> dict[str, str]:
        """Return the options in redis-py's spelling."""
        files = {
            "ssl_ca_certs": self.ca,
            "ssl_certfile": self.certificate,
            "ssl_keyfile": self.key,
        }
        return {name: path for name, path in files.items() if path}


@dataclasses.dataclass(frozen=True, slots=True)
class RedisAddress:
    """The address of a server or of any node of a Cluster, with `url` in redis-py's spelling.

    `password` is asked for each new connection, and stands in place of any in the URL; `tls` is for
    `rediss://` alone. The time-outs bound one exchange with one server; a tier's own deadline
    bounds them together.
    """

    url: str
    cluster: bool = False
    connect_timeout_seconds: float = 1.0
    socket_timeout_seconds: float = 5.0
    password: Callable[[], str] | None = dataclasses.field(default=None, repr=False)
    tls: RedisTls = RedisTls()


@dataclasses.dataclass(frozen=True, slots=True)
class _Credentials:
    """The credentials that redis-py reads at each connection."""

    user: str
    password: Callable[[], str] = dataclasses.field(repr=False)

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        return (self.user, self.password()) if self.user else (self.password(),)


def connect_redis(address: RedisAddress) -> RedisClient:
    """A client that asks again at most once, and connects when first used.

    Raises `InvalidParameter` where redis-py is not installed, and redis-py's own ValueError for a
    URL that is none.
    """
    try:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.cluster import RedisCluster
        from redis.retry import Retry
    except ImportError as error:
        message = "needs redis-py: pip install 'headwise[redis]'"
        raise InvalidParameter("store.redis", message) from error

    url, options = _url_and_options(address)

    def connect(kind: type[Redis] | type[RedisCluster]) -> RedisClient:
        # once, because a connection that rested in the pool may have been closed meanwhile
        client = kind.from_url(
            url,
            **options,
            retry=Retry(NoBackoff(), 1),
            socket_connect_timeout=address.connect_timeout_seconds,
            socket_timeout=address.socket_timeout_seconds,
            protocol=2,
        )
        return cast(RedisClient, client)

    # connects to nothing, and looks at the URL
    single = connect(Redis)
    if not address.cluster:
        return single
    return cast(RedisClient, _LaterClient(lambda: connect(RedisCluster)))


def _url_and_options(address: RedisAddress) -> tuple[str, dict[str, Any]]:
    """Return the URL and redis-py's options; the password is in one of them only."""
    options: dict[str, Any] = address.tls.options()
    if address.password is None:
        return address.url, options
    parts = urllib.parse.urlsplit(address.url)
    credentials, _, host = parts.netloc.rpartition("@")
    user = urllib.parse.unquote(credentials.partition(":")[0])
    options["credential_provider"] = _Credentials(user, address.password)
    return parts._replace(netloc=host).geturl(), options


class _LaterClient:
    """A client that is made when first used, and at every use until that succeeds.

    redis-py asks a Cluster for its nodes as soon as a client is made.
    """

    def __init__(self, connect: Callable[[], RedisClient]) -> None:
        self._connect = connect
        self._client: RedisClient | None = None
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        with self._lock:
            if self._client is None:
                self._client = self._connect()
        return getattr(self._client, name)

    def close(self) -> None:
        """Nothing to close where nothing was ever reached."""
        with self._lock:
            if self._client is not None:
                self._client.close()

"""The address of Redis and the credentials for it: a password and certificates, all from files."""

from __future__ import annotations

import logging
import pathlib
import urllib.parse

from headwise.tls import read_authorities, read_pair
from kvstore.tiers.redis_client import RedisAddress, RedisTls
from services.prefill.store.store_options import StoreOptions
from services.runtime.process.serve_error import ServeError
from services.runtime.process.watched_files import WatchedFiles

log = logging.getLogger("headwise.store")

# says nothing of the address, which may hold a password
BAD_ADDRESS = (
    "the address cannot be used: give redis://HOST:PORT or rediss://USER@HOST:PORT, with a / # ? @ "
    "or : in a name as %XX, and the password in the file of --store-redis-password"
)

# parts of the query that redis-py would read only at the first connection, or not at all
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_CLUSTER = "cluster"


def redis_address(options: StoreOptions) -> RedisAddress:
    """Raise `ServeError` for files that cannot be used at the start.

    A file that becomes unusable later makes lookups miss until it can be used again.
    """
    url, query = _without_known_query(options.store_redis)
    private = url.startswith("rediss://")
    tls = _tls(*(query.get(name, "") for name in _FILES))
    if tls.options() and not private:
        raise ServeError(f"--store-redis: {', '.join(tls.options())} needs rediss://")
    password = _password(options.store_redis_password)
    if password is not None and not private:
        log.warning("the password for Redis crosses the network in plain text")
    return RedisAddress(
        url, _is_cluster(query), password=password.current if password else None, tls=tls
    )


def _without_known_query(url: str) -> tuple[str, dict[str, str]]:
    """The URL without the parts of its query that are read here, and these parts."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        raise ServeError(f"--store-redis: {BAD_ADDRESS}") from None
    pairs = urllib.parse.parse_qsl(parts.query, keep_blank_values=True)
    known = {name: value for name, value in pairs if name in (*_FILES, _CLUSTER)}
    if not known:
        return url, known
    rest = urllib.parse.urlencode([pair for pair in pairs if pair[0] not in known])
    return parts._replace(query=rest).geturl(), known


def _is_cluster(query: dict[str, str]) -> bool:
    value = query.get(_CLUSTER, "false")
    if value not in ("true", "false"):
        raise ServeError(f"--store-redis: cluster={value} is neither true nor false")
    return value == "true"


def _password(file: str) -> WatchedFiles[str] | None:
    if not file:
        return None
    path = pathlib.Path(file)

    def read() -> str:
        password = path.read_text().strip()
        if not password or not password.isprintable():
            raise ValueError("no password")
        return password

    try:
        return WatchedFiles([path], read)
    except (OSError, ValueError) as error:
        raise ServeError(f"--store-redis-password: {path} is no file with one password") from error


def _tls(ca: str, certificate: str, key: str) -> RedisTls:
    if bool(certificate) != bool(key):
        raise ServeError("--store-redis: ssl_certfile and ssl_keyfile belong together: give both")
    try:
        if ca:
            read_authorities(ca)
        if certificate:
            read_pair(certificate, key)
    except OSError as error:
        names = " or ".join(name for name in (ca, certificate, key) if name)
        raise ServeError(f"cannot use {names}: {error.strerror}") from error
    return RedisTls(ca, certificate, key)

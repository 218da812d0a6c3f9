"""Where Redis is, and what it takes to be let in: a password and certificates, all from files."""

from __future__ import annotations

import logging
import pathlib

from headwise.tls import read_authorities, read_pair
from kvstore.tiers.redis_client import RedisAddress, RedisTls
from services.prefill.store.store_options import StoreOptions
from services.runtime.process.serve_error import ServeError
from services.runtime.process.watched_files import WatchedFiles

log = logging.getLogger("headwise.store")


def redis_address(options: StoreOptions) -> RedisAddress:
    """Raises `ServeError` for files that cannot be used; later ones are a miss until they can."""
    private = options.store_redis.startswith("rediss://")
    tls = _tls(options)
    if tls.options() and not private:
        raise ServeError(
            "--store-redis-ca, --store-redis-certificate: give --store-redis=rediss://"
        )
    password = _password(options.store_redis_password)
    if password is not None and not private:
        log.warning("Redis is told its password in plain text: whoever reads the network has it")
    return RedisAddress(
        options.store_redis,
        options.store_redis_cluster,
        password=password.current if password else None,
        tls=tls,
    )


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


def _tls(options: StoreOptions) -> RedisTls:
    ca, own = options.store_redis_ca, (options.store_redis_certificate, options.store_redis_key)
    if bool(own[0]) != bool(own[1]):
        raise ServeError(
            "--store-redis-certificate and --store-redis-key belong together: give both"
        )
    try:
        if ca:
            read_authorities(ca)
        if own[0]:
            read_pair(*own)
    except OSError as error:
        names = " or ".join(name for name in (ca, *own) if name)
        raise ServeError(f"cannot use {names}: {error.strerror}") from error
    return RedisTls(ca, *own)

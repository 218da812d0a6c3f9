"""The tiers that the configuration names."""

from __future__ import annotations

import logging

from headwise.target import target_fault
from kvstore.errors import InvalidParameter
from kvstore.tiers import BoundedTier, Budget, DiskTier, MemoryTier, Tier
from kvstore.tiers.mooncake import MooncakeTier
from kvstore.tiers.mooncake_client import MooncakeAddress, connect_mooncake
from kvstore.tiers.redis import RedisOptions, RedisTier
from kvstore.tiers.redis_client import RedisClient, connect_redis
from kvstore.wire import WireLimits
from services.prefill.store.redis_access import BAD_ADDRESS, redis_address
from services.prefill.store.store_options import StoreOptions
from services.runtime.process.serve_error import ServeError

log = logging.getLogger("headwise.store")


def require_stores(options: StoreOptions) -> None:
    """Raise `ServeError` for an address or a file that cannot be used; nothing is connected."""
    if options.store_redis:
        _redis_client(options).close()
    if options.store_mooncake:
        master, query, metadata_url = options.store_mooncake.partition("?metadata=")
        if not (query and metadata_url) or target_fault(master):
            raise ServeError(
                f"--store-mooncake {options.store_mooncake}: give HOST:PORT?metadata=URL"
            )


def memory_tier(options: StoreOptions) -> MemoryTier:
    """Return the nearest tier, which holds nothing if its budget is 0."""
    return MemoryTier(_budget(options, options.store_memory_bytes))


def tiers_below(options: StoreOptions, limits: WireLimits) -> list[Tier]:
    """Return the other tiers, nearest first. Raises `ServeError` or `InvalidParameter`."""
    tiers: list[Tier] = []
    if options.store_disk:
        budget = _budget(options, options.store_disk_bytes)
        try:
            tiers.append(BoundedTier(DiskTier(options.store_disk, budget, limits=limits)))
        except OSError as error:
            raise ServeError(f"--store-disk {options.store_disk}: {error.strerror}") from error
    if options.store_redis:
        tiers.append(BoundedTier(_redis(options, limits)))
    if options.store_mooncake:
        tiers.append(BoundedTier(_mooncake(options, limits)))
    for tier in tiers:
        log.info("kept caches also rest in %s", tier.name)
    return tiers


def _budget(options: StoreOptions, nbytes: int) -> Budget:
    return Budget(nbytes, each_bytes=options.store_tenant_bytes or None)


def _redis(options: StoreOptions, limits: WireLimits) -> RedisTier:
    layout = RedisOptions(each_bytes=options.store_tenant_bytes or None)
    return RedisTier(_redis_client(options), layout, limits=limits)


def _redis_client(options: StoreOptions) -> RedisClient:
    # a server that does not run yet causes misses until it runs
    address = redis_address(options)
    try:
        return connect_redis(address)
    except InvalidParameter as error:
        raise ServeError(f"--store-redis: {error}") from error
    # redis-py has many errors for an address that cannot be used, and some quote a part of it,
    # which may be of a password
    except Exception as error:
        raise ServeError(f"--store-redis: {BAD_ADDRESS} ({type(error).__name__})") from None


def _mooncake(options: StoreOptions, limits: WireLimits) -> MooncakeTier:
    master, _, metadata_url = options.store_mooncake.partition("?metadata=")
    address = MooncakeAddress(master, metadata_url)
    try:
        return MooncakeTier(connect_mooncake(address), limits=limits)
    except ConnectionError as error:
        raise ServeError(f"--store-mooncake: {error}") from error

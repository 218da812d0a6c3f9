"""Configuration of where prefill keeps caches."""

from __future__ import annotations

import dataclasses

from services.runtime.process.configuration import setting


@dataclasses.dataclass(frozen=True, slots=True)
class StoreOptions:
    """Tiers from near to far, and what may be kept in them."""

    store_memory_bytes: int = setting(1 << 30, "Bytes of kept caches held in memory.", minimum=0)
    store_disk: str = setting(
        "", "Folder for kept caches, of this process alone; empty for none. They outlive it."
    )
    store_disk_bytes: int = setting(16 << 30, "Bytes of kept caches on disk.", minimum=0)
    store_redis: str = setting(
        "",
        "Redis or Valkey for kept caches, as redis://HOST:PORT, or rediss:// with TLS; "
        "empty for none.",
    )
    store_redis_cluster: bool = setting(False, "That address is a node of a Cluster.")
    store_redis_password: str = setting(
        "", "File with the password for Redis, read again when it changes; empty for none."
    )
    store_redis_ca: str = setting(
        "", "PEM file with the authorities that vouch for Redis; empty for the system's."
    )
    store_redis_certificate: str = setting(
        "", "PEM file with the certificate shown to Redis, and its chain; empty for none."
    )
    store_redis_key: str = setting("", "PEM file with that certificate's private key.")
    store_mooncake: str = setting(
        "", "Mooncake Store's master for kept caches, as HOST:PORT; empty for none."
    )
    store_mooncake_metadata: str = setting("", "URL of Mooncake Store's metadata server.")
    store_write: str = setting(
        "back",
        "Whether a kept cache waits until every store has it, or only the nearest.",
        choices=("back", "through"),
    )
    store_prompts: bool = setting(
        False, "Keep every prompt's cache while there is room, not only those asked for."
    )
    store_timeout_seconds: float = setting(
        2.0, "A store that takes longer to answer has not got the cache.", minimum=0.01
    )
    store_tenant_bytes: int = setting(
        0, "Bytes of kept caches of one tenant in each store; 0 for all there is.", minimum=0
    )
    max_keep_seconds: float = setting(
        86_400.0, "Longest time a cache is kept under one lease without renewal.", minimum=1
    )
    max_leases: int = setting(
        65_536, "Leases at once; one more is answered RESOURCE_EXHAUSTED.", minimum=0
    )

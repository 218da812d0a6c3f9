"""Configuration of the tiers in which prefill keeps stored caches."""

from __future__ import annotations

import dataclasses

from services.runtime.process.configuration import setting


@dataclasses.dataclass(frozen=True, slots=True)
class StoreOptions:
    """The tiers, the nearest first, and the limits of what is stored."""

    store_memory_bytes: int = setting(1 << 30, "Bytes of stored caches in memory.", minimum=0)
    store_disk: str = setting(
        "",
        "Folder for stored caches. One process alone may use it, and the caches outlive the "
        "process. Empty for none.",
    )
    store_disk_bytes: int = setting(16 << 30, "Bytes of stored caches on disk.", minimum=0)
    store_redis: str = setting(
        "",
        "Redis or Valkey for stored caches, as redis://HOST:PORT, or rediss:// for TLS. The query "
        "may hold ssl_ca_certs, ssl_certfile and ssl_keyfile (PEM files), and cluster=true where "
        "the address is a node of a Cluster. Empty for none.",
    )
    store_redis_password: str = setting(
        "",
        "File with the password for Redis; a changed file is read again. Empty for none.",
    )
    store_mooncake: str = setting(
        "",
        "Mooncake Store for stored caches, as HOST:PORT?metadata=URL: its master, and its metadata "
        "server. Empty for none.",
    )
    store_write: str = setting(
        "back",
        "When a request to store a cache is answered: once the nearest tier holds the cache "
        "(back), or once all tiers do (through).",
        choices=("back", "through"),
    )
    store_prompts: bool = setting(
        False, "Store the cache of every prompt while there is room, also without a request."
    )
    store_timeout_seconds: float = setting(
        2.0,
        "Seconds that a tier has for an answer; after that the cache counts as missing there.",
        minimum=0.01,
    )
    store_tenant_bytes: int = setting(
        0, "Most bytes of one tenant's stored caches in each tier; 0 for no limit.", minimum=0
    )
    max_ttl_seconds: float = setting(
        86_400.0, "Longest TTL of a stored cache, in seconds.", minimum=1
    )
    max_leases: int = setting(
        65_536, "Most leases at once; a further one is answered RESOURCE_EXHAUSTED.", minimum=0
    )

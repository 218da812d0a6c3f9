"""The limits of a tenant on its leases and on the bytes that these keep."""

from __future__ import annotations

from contextlib import AbstractContextManager

from services.prefill.store.cache_store import CacheStore
from services.runtime.security.identity import current_allowance


def new_lease(store: CacheStore, namespace: str) -> AbstractContextManager[None]:
    """Count a lease that a call is about to get. Raises `Overloaded` at the tenant's limit."""
    return current_allowance().hold("leases", store.leases_of(namespace), 1)


def stored_bytes(store: CacheStore, namespace: str, nbytes: int) -> AbstractContextManager[None]:
    """Count the bytes of a cache that is about to be stored. Raises `Overloaded` at the limit."""
    return current_allowance().hold("stored_bytes", store.leased_bytes(namespace), nbytes)

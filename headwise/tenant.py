"""On whose behalf a client asks."""

from __future__ import annotations

TENANT_KEY = "x-headwise-tenant"

Metadata = tuple[tuple[str, str], ...]


def tenant_metadata(tenant: str) -> Metadata:
    """What every call carries; nothing for the default tenant."""
    return ((TENANT_KEY, tenant),) if tenant else ()

"""The file of static tokens and of the limits of each tenant.

    [[tokens]]
    sha256 = "<hex of the token's SHA-256>"     # the token itself is nowhere in the file
    tenant = "acme"                             # "*": a service, which names the tenant it acts for
    expires = 2027-01-01T00:00:00Z              # optional

    [tenants.acme]                              # "*": every tenant not named; default: callers
                                                # without a tenant
    streams = 8                                 # streaming calls at once
    tokens_per_minute = 60000                   # prompt and answer together
    bytes = 1073741824                          # of sessions and running generations, in decode

A limit that is missing or 0 does not apply.
"""

from __future__ import annotations

import dataclasses
import datetime
import pathlib
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from kvstore.tiers.content_key import DEFAULT_NAMESPACE

ANY_TENANT = "*"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class BadTenantsFile(Exception):
    """The file is invalid; the message names the place and quotes no content."""


@dataclasses.dataclass(frozen=True, slots=True)
class TenantLimits:
    """Limits of one tenant in one process; 0 means no limit."""

    streams: int = 0
    tokens_per_minute: int = 0
    bytes: int = 0
    sessions: int = 0
    leases: int = 0
    stored_bytes: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class StaticToken:
    """The tenant of a token; `expires` is in seconds since the epoch."""

    tenant: str
    expires: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class TenantsFile:
    """Tokens by the hexadecimal SHA-256 of each, and limits by tenant."""

    tokens: Mapping[str, StaticToken] = dataclasses.field(default_factory=dict)
    limits: Mapping[str, TenantLimits] = dataclasses.field(default_factory=dict)

    def limits_of(self, tenant: str) -> TenantLimits:
        """Return the tenant's own limits, or those of every tenant that is not named."""
        named = self.limits.get(tenant or DEFAULT_NAMESPACE)
        return named or self.limits.get(ANY_TENANT) or TenantLimits()


def is_tenant_name(name: str) -> bool:
    """Whether `content_key` takes it as a namespace: no dot or dash first, at most 64 long."""
    return _NAME.fullmatch(name) is not None


def read_tenants_file(path: pathlib.Path) -> TenantsFile:
    """Return the content of the file. Raises `BadTenantsFile` or `OSError`."""
    try:
        content = tomllib.loads(path.read_text())
    except ValueError as error:
        # the error's text may quote a line of the file
        raise BadTenantsFile("it is no TOML") from error
    _require_keys(content, {"tokens", "tenants"}, "the file")
    tokens: dict[str, StaticToken] = {}
    for place, entry in enumerate(content.get("tokens", [])):
        digest, token = _token(entry, f"tokens[{place}]")
        if digest in tokens:
            raise BadTenantsFile(f"tokens[{place}] is the same token as an earlier one")
        tokens[digest] = token
    limits = {
        _tenant(name, "tenants"): _limits(entry, f"tenants.{name}")
        for name, entry in content.get("tenants", {}).items()
    }
    return TenantsFile(tokens, limits)


def _token(entry: Mapping[str, Any], where: str) -> tuple[str, StaticToken]:
    _require_keys(entry, {"sha256", "tenant", "expires"}, where)
    digest, expires = entry.get("sha256"), entry.get("expires")
    if not (isinstance(digest, str) and _DIGEST.fullmatch(digest)):
        raise BadTenantsFile(f"{where}.sha256 must be 64 hexadecimal digits, in lower case")
    tenant = _tenant(entry.get("tenant"), f"{where}.tenant")
    if tenant == DEFAULT_NAMESPACE:
        # its stored caches would be those of callers without a tenant
        raise BadTenantsFile(
            f"{where}.tenant: {DEFAULT_NAMESPACE} stands for callers without a tenant: "
            "choose another name"
        )
    if expires is None:
        return digest, StaticToken(tenant)
    if not isinstance(expires, datetime.datetime) or expires.tzinfo is None:
        raise BadTenantsFile(f"{where}.expires must be a time with its zone")
    return digest, StaticToken(tenant, expires.timestamp())


def _tenant(name: object, where: str) -> str:
    if isinstance(name, str) and (name == ANY_TENANT or is_tenant_name(name)):
        return name
    raise BadTenantsFile(f"{where}: a tenant is 1 to 64 letters, digits, dots, dashes, underscores")


def _limits(entry: Mapping[str, Any], where: str) -> TenantLimits:
    names = {field.name for field in dataclasses.fields(TenantLimits)}
    _require_keys(entry, names, where)
    for name, value in entry.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise BadTenantsFile(f"{where}.{name} must be a whole number, 0 or more")
    return TenantLimits(**entry)


def _require_keys(entry: object, known: set[str], where: str) -> None:
    if not isinstance(entry, Mapping):
        raise BadTenantsFile(f"{where} must be a table")
    if entry.keys() - known:
        raise BadTenantsFile(f"{where} has a key beside {', '.join(sorted(known))}")

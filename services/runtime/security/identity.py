"""Who is calling: decided once a call, before its handler runs, and read wherever it matters."""

from __future__ import annotations

import contextvars
import dataclasses

from kvstore.tiers.content_key import DEFAULT_NAMESPACE
from services.runtime.security.allowance import Allowance
from services.runtime.security.tenants_file import TenantLimits


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """`tenant` is empty for callers who are not told apart."""

    tenant: str
    allowance: Allowance


_identity: contextvars.ContextVar[Identity] = contextvars.ContextVar("identity")
# outside of calls, as when decode asks prefill what it serves
_NOBODY = Identity("", Allowance(TenantLimits()))


def current_tenant() -> str:
    """The tenant this call is made for, or ""."""
    return _identity.get(_NOBODY).tenant


def current_namespace() -> str:
    """Where its stored caches rest: that tenant's own, or the one of callers not told apart."""
    return current_tenant() or DEFAULT_NAMESPACE


def current_allowance() -> Allowance:
    """What that tenant may use, and has used."""
    return _identity.get(_NOBODY).allowance


def set_identity(identity: Identity) -> None:
    """For the rest of this call; the interceptor alone does that."""
    _identity.set(identity)

"""The identity of the caller, set once per call before its handler runs."""

from __future__ import annotations

import contextvars
import dataclasses

from kvstore.tiers.content_key import DEFAULT_NAMESPACE
from services.runtime.security.allowance import Allowance
from services.runtime.security.tenants_file import TenantLimits


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """A tenant and its allowance. `tenant` is empty where the process has no tenants."""

    tenant: str
    allowance: Allowance


_identity: contextvars.ContextVar[Identity] = contextvars.ContextVar("identity")
# outside of calls, for example when decode calls Describe of prefill
_ANONYMOUS = Identity("", Allowance(TenantLimits()))


def current_tenant() -> str:
    """The tenant of this call, or ""."""
    return _identity.get(_ANONYMOUS).tenant


def current_namespace() -> str:
    """The namespace of this call's stored caches: its tenant's, or the default one."""
    return current_tenant() or DEFAULT_NAMESPACE


def current_allowance() -> Allowance:
    """The allowance of this call's tenant."""
    return _identity.get(_ANONYMOUS).allowance


def set_identity(identity: Identity) -> None:
    """Set the identity for the rest of this call. Only the interceptor calls this."""
    _identity.set(identity)

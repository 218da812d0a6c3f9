"""Authentication of calls: the only place that determines the caller's tenant."""

from __future__ import annotations

import hashlib
import logging
import pathlib
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

import jwt

from headwise.connection import AUTHORIZATION_KEY, TENANT_KEY
from headwise.errors import Forbidden, InvalidRequest, Unauthenticated
from kvstore.tiers.content_key import DEFAULT_NAMESPACE
from services.runtime.process.serve_error import ServeError
from services.runtime.process.watched_files import WatchedFiles
from services.runtime.security.allowance import Allowances
from services.runtime.security.identity import Identity
from services.runtime.security.jwt_keys import BadKeys, JwtKeys, JwtRules, read_jwt_keys
from services.runtime.security.security_options import SecurityOptions
from services.runtime.security.tenants_file import (
    ANY_TENANT,
    BadTenantsFile,
    TenantsFile,
    is_tenant_name,
    read_tenants_file,
)

T = TypeVar("T")

log = logging.getLogger("headwise.security")

_SCHEME = "bearer "
# gRPC accepts 8 KiB of metadata; longer tokens count as missing
_MAX_TOKEN_CHARACTERS = 8192
_NO_TENANTS = TenantsFile()


class Authentication:
    """Finds the identity of a caller. Raises `ServeError` for files that cannot be used.

    A file of limits alone asks for no token until the file has one. From then on every call needs
    a token until the process ends, also when the file loses its tokens again.
    """

    def __init__(self, options: SecurityOptions) -> None:
        self._file = _watched("--tokens", options.tokens, read_tenants_file)
        self._keys = _watched("--jwt-keys", options.jwt_keys, read_jwt_keys)
        self._rules = JwtRules(options.jwt_issuer, options.jwt_audience)
        self._tenant_claim = options.jwt_tenant_claim
        self._jwt_any_tenant = options.jwt_any_tenant
        # a file without any content is more likely a secret that is not filled yet than a wish
        # to let every caller in, so it lets nobody in
        empty = self._file is not None and self._tenants == _NO_TENANTS
        self._required = self._keys is not None or empty
        self._allowances = Allowances(lambda tenant: self._tenants.limits_of(tenant))
        self._warn(options.tokens)

    @property
    def required(self) -> bool:
        """Whether calls need a token; once true it stays true."""
        self._required = self._required or bool(self._tenants.tokens)
        return self._required

    def _warn(self, tokens_file: str) -> None:
        if self._file is None or self._tenants.tokens:
            return
        if self.required and self._keys is None:
            log.warning("%s is empty: every call is refused until it has a token", tokens_file)
        elif not self.required:
            log.warning(
                "%s has limits and no token: every caller is accepted as the tenant it names",
                tokens_file,
            )

    def identify(self, metadata: Iterable[tuple[str, str | bytes]]) -> Identity:
        """Return the caller. Raises `Unauthenticated`, `Forbidden` or `InvalidRequest`."""
        pairs = list(metadata)
        named = _named_tenant(_values(pairs, TENANT_KEY))
        token = _token(_values(pairs, AUTHORIZATION_KEY))
        tenant = self._tenant(token) if self.required else named
        if tenant == ANY_TENANT:
            tenant = named
        elif named not in ("", tenant):
            raise Forbidden(
                "this token is for another tenant", "TENANT_REFUSED", {"field": TENANT_KEY}
            )
        if tenant == DEFAULT_NAMESPACE:
            # the name by which decode calls prefill for callers without a tenant
            tenant = ""
        return Identity(tenant, self._allowances.of(tenant))

    @property
    def _tenants(self) -> TenantsFile:
        return _NO_TENANTS if self._file is None else self._file.current()

    def _tenant(self, token: str) -> str:
        if not token:
            raise Unauthenticated("this call needs a token", "TOKEN_MISSING")
        if self._keys is not None and token.count(".") == 2:
            return self._signed(self._keys.current(), token)
        # the time that looking up a digest takes reveals nothing about any token
        known = self._tenants.tokens.get(hashlib.sha256(token.encode()).hexdigest())
        if known is None:
            raise _refused()
        if known.expires is not None and known.expires <= time.time():
            raise _expired()
        return known.tenant

    def _signed(self, keys: JwtKeys, token: str) -> str:
        try:
            tenant = keys.claims(token, self._rules).get(self._tenant_claim)
        except jwt.ExpiredSignatureError:
            raise _expired() from None
        except jwt.PyJWTError:
            raise _refused() from None
        if tenant == ANY_TENANT and self._jwt_any_tenant:
            return ANY_TENANT
        if isinstance(tenant, str) and tenant != DEFAULT_NAMESPACE and is_tenant_name(tenant):
            return tenant
        raise _refused()


def _watched(flag: str, name: str, read: Callable[[pathlib.Path], T]) -> WatchedFiles[T] | None:
    if not name:
        return None
    path = pathlib.Path(name)
    try:
        return WatchedFiles([path], lambda: read(path))
    except OSError as error:
        raise ServeError(f"{flag}: cannot read {path}: {error.strerror}") from error
    except (BadTenantsFile, BadKeys, UnicodeDecodeError) as error:
        reason = "it is no text" if isinstance(error, UnicodeDecodeError) else str(error)
        raise ServeError(f"{flag}: {path}: {reason}") from error


def _values(pairs: list[tuple[str, str | bytes]], key: str) -> list[str | bytes]:
    return [value for name, value in pairs if name == key]


def _named_tenant(values: list[str | bytes]) -> str:
    """Return the named tenant, or "". Two names are refused, because each could be meant."""
    match values:
        case []:
            return ""
        case [str() as name] if is_tenant_name(name):
            return name
    raise InvalidRequest(
        "a tenant is 1 to 64 letters, digits, dots, dashes and underscores",
        "INVALID_TENANT",
        {"field": TENANT_KEY},
    )


def _token(values: list[str | bytes]) -> str:
    """Return the text after the scheme; "" where there is no token, or more than one."""
    match values:
        case [str() as value] if value[: len(_SCHEME)].lower() == _SCHEME:
            token = value[len(_SCHEME) :].strip()
            return token if len(token) <= _MAX_TOKEN_CHARACTERS else ""
    return ""


def _refused() -> Unauthenticated:
    return Unauthenticated("this token is not accepted", "TOKEN_REFUSED")


def _expired() -> Unauthenticated:
    return Unauthenticated("this token has expired", "TOKEN_EXPIRED")

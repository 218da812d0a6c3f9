"""JSON Web Tokens, checked with the issuer's public keys by PyJWT."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

# public-key algorithms only, because the key that checks an HMAC also makes valid tokens
_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA")
# NIST SP 800-131A; PyJWT takes shorter keys with a warning
_MIN_RSA_BITS = 2048
# allowed difference between the clocks of two machines
_LEEWAY_SECONDS = 10.0


class BadKeys(Exception):
    """The file has no key that can be used."""


@dataclasses.dataclass(frozen=True, slots=True)
class JwtRules:
    """Required claims of a token beside signature and expiry; empty accepts any value."""

    issuer: str = ""
    audience: str = ""


class JwtKeys:
    """The keys of one file: a JWKS document, or one public key in PEM form."""

    def __init__(self, content: str) -> None:
        self._single: str | None = None
        self._by_id: dict[str | None, jwt.PyJWK] = {}
        try:
            if content.lstrip().startswith("{"):
                self._by_id = _public_keys(json.loads(content))
            else:
                self._single = _require_public(content)
        except (ValueError, LookupError, TypeError, UnsupportedAlgorithm, jwt.PyJWTError) as error:
            raise BadKeys("neither a JWKS document nor a public key in PEM form") from error
        if self._single is None and not self._by_id:
            raise BadKeys("the JWKS document has no public key for signatures")

    def claims(self, token: str, rules: JwtRules) -> Mapping[str, Any]:
        """Return the claims of a token. Raises `jwt.ExpiredSignatureError` or `jwt.PyJWTError`."""
        claims: Mapping[str, Any] = jwt.decode(
            token,
            self._key(token),
            algorithms=_ALGORITHMS,
            audience=rules.audience or None,
            issuer=rules.issuer or None,
            leeway=_LEEWAY_SECONDS,
            options={"require": ["exp"], "verify_aud": bool(rules.audience)},
        )
        return claims

    def _key(self, token: str) -> Any:
        if self._single is not None:
            return self._single
        key_id = jwt.get_unverified_header(token).get("kid")
        if key_id is None and len(self._by_id) == 1:
            return next(iter(self._by_id.values()))
        if key_id not in self._by_id:
            raise jwt.InvalidKeyError("no such key")
        return self._by_id[key_id]


def read_jwt_keys(path: pathlib.Path) -> JwtKeys:
    """Raises `BadKeys` or `OSError`."""
    return JwtKeys(path.read_text())


def _public_keys(document: Mapping[str, Any]) -> dict[str | None, jwt.PyJWK]:
    """Return the public keys by id; private and symmetric keys in the document are ignored.

    Raises `BadKeys` for two keys of one id, and for one that is too short.
    """
    entries = (
        entry
        for entry in document["keys"]
        if isinstance(entry, dict)
        and entry.get("kty") in ("RSA", "EC", "OKP")
        and "d" not in entry
        and entry.get("use", "sig") == "sig"
    )
    keys: dict[str | None, jwt.PyJWK] = {}
    for entry in entries:
        key_id, key = entry.get("kid"), jwt.PyJWK.from_dict(entry)
        if key_id in keys:
            raise BadKeys("two keys have the same kid, or none: give each its own")
        _require_length(key.key)
        keys[key_id] = key
    return keys


def _require_public(content: str) -> str:
    _require_length(load_pem_public_key(content.encode()))
    return content


def _require_length(key: object) -> None:
    if isinstance(key, RSAPublicKey) and key.key_size < _MIN_RSA_BITS:
        raise BadKeys(f"an RSA key of {key.key_size} bits: the least is {_MIN_RSA_BITS}")

"""Tokens of a test's own, and the files that make them good."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from tests.security.certificates import replace


def entry(token: str, tenant: str, expires: str = "") -> str:
    """Lines that make a token good."""
    digest = hashlib.sha256(token.encode()).hexdigest()
    end = f"expires = {expires}\n" if expires else ""
    return f'[[tokens]]\nsha256 = "{digest}"\ntenant = "{tenant}"\n{end}'


def write(file: Path, *lines: str) -> Path:
    """Replace the file at once."""
    replace(file, "\n".join(lines).encode())
    return file


def pem(key: PublicKeyTypes) -> str:
    """Return a public key in PEM form."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, form).decode()


@dataclasses.dataclass
class Issuer:
    """Signs tokens with a key of its own."""

    key_id: str = "key-1"

    def __post_init__(self) -> None:
        self._key = generate_private_key(SECP256R1())

    def sign(self, seconds: float = 60.0, **claims: Any) -> str:
        """A token for so long, with these claims."""
        claims = {"exp": int(time.time() + seconds), **claims}
        claims = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(claims, self._key, "ES256", headers={"kid": self.key_id})

    def pem(self) -> str:
        return pem(self._key.public_key())

    def jwk(self, *, private: bool = False) -> dict[str, Any]:
        key = self._key if private else self._key.public_key()
        return {
            **jwt.algorithms.ECAlgorithm.to_jwk(key, as_dict=True),
            "kid": self.key_id,
            "use": "sig",
        }

"""A pair of real services behind mutual TLS and tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from headwise import Client, Tls
from headwise.connection import Connection
from services.demo.processes import Service
from tests.conftest import running_pair
from tests.security import certificates
from tests.security.certificates import Authority
from tests.security.tokens import Issuer, entry, write

# each is looked for in everything that the services write
TOKENS = {
    "acme": "acme-token-7d1f3a",
    "globex": "globex-token-55c0e2",
    "small": "small-token-90aa41",
    "decode": "decode-token-c3b2f8",
}
# with these prefill knows who fetches caches from it without a decode between
FETCH_TOKENS = {"acme": "acme-fetches-1c9d20", "globex": "globex-fetches-7e55b1"}


@dataclasses.dataclass(frozen=True, slots=True)
class SecurePair:
    """Two services, and what it takes to call them."""

    prefill: Service
    decode: Service
    authority: Authority
    issuer: Issuer
    client_pair: certificates.Pair

    @property
    def tls(self) -> Tls:
        """The right one for a client."""
        return self.authority.client_tls(self.client_pair)

    def client(self, token: str | None) -> Client:
        """Return a client of decode with the right certificate."""
        return Client(self.decode.target, tls=self.tls, token=token)

    def prefill_connection(self, token: str, tenant: str = "") -> Connection:
        """Return a connection to prefill with the right certificate, for the tenant."""
        return Connection(self.prefill.target, self.tls, token=token, tenant=tenant)


@pytest.fixture(scope="session")
def secure_pair(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecurePair]:
    """Logs everything, for tests that look for what must not be there."""
    folder = tmp_path_factory.mktemp("secure")
    authority, issuer = Authority(folder / "authority"), Issuer()
    limits = "[tenants.small]\nstreams = 1\ntokens_per_minute = 40"
    tenants = (entry(TOKENS[name], name) for name in ("acme", "globex", "small"))
    for_decode = write(folder / "decode.toml", *tenants, limits)
    fetching = (entry(token, name) for name, token in FETCH_TOKENS.items())
    for_prefill = write(folder / "prefill.toml", entry(TOKENS["decode"], "*"), *fetching)
    keys = write(folder / "keys.pem", issuer.pem())
    own_token = write(folder / "own-token", TOKENS["decode"])
    own, client = authority.issue("decode-client"), authority.issue("client")
    prefill = (*_server(authority, "prefill"), "--tokens", str(for_prefill))
    decode = (
        *_server(authority, "decode"),
        *("--tokens", str(for_decode), "--jwt-keys", str(keys)),
        *("--prefill-ca", str(authority.file), "--prefill-token", str(own_token)),
        *("--prefill-certificate", str(own.certificate), "--prefill-key", str(own.key)),
    )
    with running_pair(str(tiny_model), prefill, decode) as (running_prefill, running_decode):
        yield SecurePair(running_prefill, running_decode, authority, issuer, client)


def _server(authority: Authority, name: str) -> tuple[str, ...]:
    pair = authority.issue(name)
    return (
        *("--tls-certificate", str(pair.certificate), "--tls-key", str(pair.key)),
        *("--tls-client-ca", str(authority.file), "--health-port", "0", "--log-level", "DEBUG"),
    )

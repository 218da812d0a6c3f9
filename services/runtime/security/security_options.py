"""The part of configuration that says who may call, and how calls are kept private."""

from __future__ import annotations

import dataclasses

from services.runtime.process.configuration import setting


@dataclasses.dataclass(frozen=True, slots=True)
class SecurityOptions:
    """Files are read again when they change, without a restart."""

    tls_certificate: str = setting(
        "", "PEM file with the server's certificate and its chain; empty for plain text."
    )
    tls_key: str = setting("", "PEM file with the certificate's private key.")
    tls_client_ca: str = setting(
        "",
        "PEM file with authorities; who has no certificate of theirs is refused. Empty for none.",
    )
    health_port: int = setting(
        -1,
        "Port of the health service alone, in plain text, for the kubelet; 0 takes a free one, "
        "-1 has none.",
        minimum=-1,
        maximum=65535,
    )
    tokens: str = setting(
        "",
        "TOML file with hashes of static tokens and the limits of tenants; see docs/security.md.",
    )
    jwt_keys: str = setting(
        "",
        "File with the public keys that sign JSON Web Tokens: a JWKS document, or one key as PEM.",
    )
    jwt_issuer: str = setting("", "Issuer a JSON Web Token must name; empty for any.")
    jwt_audience: str = setting("", "Audience a JSON Web Token must name; empty for any.")
    jwt_tenant_claim: str = setting("tenant", "Claim of a JSON Web Token that names the tenant.")

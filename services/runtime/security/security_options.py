"""Configuration of TLS and of the callers that a service accepts."""

from __future__ import annotations

import dataclasses

from services.runtime.process.configuration import setting


@dataclasses.dataclass(frozen=True, slots=True)
class SecurityOptions:
    """TLS, tokens and JSON Web Tokens; a changed file is read again without a restart."""

    tls_certificate: str = setting(
        "", "PEM file with the server's certificate and its chain; empty for plain text."
    )
    tls_key: str = setting("", "PEM file with the certificate's private key.")
    tls_client_ca: str = setting(
        "",
        "PEM file with authorities; a caller without a certificate from them is refused. Empty for "
        "none.",
    )
    health_port: int = setting(
        -1,
        "Port that serves health alone, in plain text, for the kubelet; 0 takes a free one, -1 "
        "opens none.",
        minimum=-1,
        maximum=65535,
    )
    tokens: str = setting(
        "",
        "TOML file with the hashes of static tokens and the limits of tenants, as docs/security.md "
        "describes. Empty for none.",
    )
    jwt_keys: str = setting(
        "",
        "File with the public keys that check JSON Web Tokens: a JWKS document, or one key as PEM. "
        "Empty for none.",
    )
    jwt_issuer: str = setting("", "Issuer that a JSON Web Token must name; empty for any.")
    jwt_audience: str = setting("", "Audience that a JSON Web Token must name; empty for any.")
    jwt_tenant_claim: str = setting("tenant", "Claim of a JSON Web Token that names the tenant.")
    jwt_any_tenant: bool = setting(
        False,
        "Take a JSON Web Token whose tenant is * as that of a service, which may act for every "
        "tenant. Give it only if the issuer alone decides the claim.",
    )

"""The part of configuration that says who may call, and how calls are kept private."""

from __future__ import annotations

import dataclasses

from services.runtime.configuration import setting


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

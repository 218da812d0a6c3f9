"""Configuration of TLS and the token for decode's calls to prefill."""

from __future__ import annotations

import dataclasses

from services.runtime.process.configuration import setting


@dataclasses.dataclass(frozen=True, slots=True)
class LinkOptions:
    """Credentials for calls to prefill; a changed file is read again without a restart."""

    prefill_ca: str = setting(
        "", "PEM file with the authorities that sign prefill's certificate; empty for plain text."
    )
    prefill_certificate: str = setting(
        "", "PEM file with the certificate that decode shows to prefill, and its chain."
    )
    prefill_key: str = setting("", "PEM file with that certificate's private key.")
    prefill_token: str = setting(
        "", "File with the token that decode sends to prefill; empty for none."
    )

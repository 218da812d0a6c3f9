"""How decode reaches prefill privately, and as whom."""

from __future__ import annotations

import dataclasses

from services.runtime.process.configuration import setting


@dataclasses.dataclass(frozen=True, slots=True)
class LinkOptions:
    """Files are read again when they change, without a restart."""

    prefill_ca: str = setting(
        "", "PEM file with the authorities that vouch for prefill; empty for plain text."
    )
    prefill_certificate: str = setting(
        "", "PEM file with decode's own certificate and its chain, for prefill's --tls-client-ca."
    )
    prefill_key: str = setting("", "PEM file with that certificate's private key.")
    prefill_token: str = setting("", "File with the token decode shows to prefill; empty for none.")

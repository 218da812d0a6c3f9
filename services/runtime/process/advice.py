"""Advice for the operator on a call that a service did not answer."""

from __future__ import annotations

from headwise.errors import (
    Forbidden,
    HeadwiseError,
    NotSupported,
    Unauthenticated,
    Unavailable,
)


def advice_for(error: HeadwiseError) -> str:
    """Return advice that names the flags of the command line."""
    match error:
        case Unavailable():
            return "Check that the service is running at this address. With TLS give --tls-ca."
        case Unauthenticated() | Forbidden():
            return "Give --token-file with a token that the service accepts."
        case NotSupported():
            return "Another program listens there; give a Headwise service."
        case _:
            return "The service's log has the details."

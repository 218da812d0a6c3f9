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
            return "Is it started, is the address right? With TLS give --tls-ca."
        case Unauthenticated() | Forbidden():
            return "Give --token-file with a token that is let in."
        case NotSupported():
            return "Another program listens there; give a Headwise service."
        case _:
            return "Its log says more."

"""The spelling of an address of a service."""

from __future__ import annotations

import re

# names that gRPC resolves itself
_RESOLVED = re.compile(r"(unix|unix-abstract|xds|vsock|google-c2p|google-c2p-experimental):")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_LARGEST_PORT = 65_535


def target_fault(target: str) -> str | None:
    """Return what is wrong with the spelling of a target, or None."""
    if _RESOLVED.match(target):
        return None
    if not target.isprintable():
        return "an address has printable characters alone: give HOST:PORT"
    if not target.strip():
        return "the address is empty: give HOST:PORT"
    scheme = _SCHEME.match(target)
    if scheme and scheme[1].lower() not in ("dns",):
        plain = target[scheme.end() :].partition("/")[0]
        hint = " and TLS files for an encrypted one" if scheme[1].lower() == "https" else ""
        return f"an address has no {scheme[0]} before it: give {plain or 'HOST:PORT'}{hint}"
    if any(character.isspace() for character in target):
        return "an address has no spaces: give HOST:PORT"
    if target.startswith("dns:"):
        return None
    return _fault_of_port(re.sub(r"^ipv[46]:", "", target).split(",")[0])


def _fault_of_port(address: str) -> str | None:
    host, colon, port = address.rpartition(":")
    if not colon or (host.count(":") > 0 and not host.endswith("]")):
        # an IPv6 address stands in brackets before its port
        plain = f"[{address}]" if address.count(":") > 1 and "[" not in address else address
        return f"the port is missing: give {plain}:7080 for a decode service"
    if "/" in port:
        return f"an address has no path: give {host}:{port.partition('/')[0]}"
    if not host:
        return f"the host is missing: give 127.0.0.1:{port}"
    if not (port.isascii() and port.isdigit() and 0 < int(port) <= _LARGEST_PORT):
        return f"{port!r} is no port: give a number from 1 to {_LARGEST_PORT}"
    return None

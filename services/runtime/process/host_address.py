"""Spellings of a host: an IPv6 address stands in brackets where a port follows."""

from __future__ import annotations


def bare_host(host: str) -> str:
    """Return the host as sockets take it: `::1` for `[::1]` too."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def host_and_port(host: str, port: int) -> str:
    """Return `HOST:PORT`, or `[HOST]:PORT` for an IPv6 address in either spelling."""
    bare = bare_host(host)
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"

"""Proxies that the environment names: gRPC sends every call through them, loopback's too."""

from __future__ import annotations

import ipaddress
import os
import re

# in the order in which gRPC looks; it reads no variable in upper case
_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")
_FORMS = re.compile(r"^(dns:(///?[^/]*/)?/*|ipv4:|ipv6:)")


def is_local(target: str) -> bool:
    """Whether calls to a target stay on this machine: they never go through a proxy."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    return all(_is_loopback(address) for address in _FORMS.sub("", target).split(","))


def proxy_variable(target: str) -> str | None:
    """Return the variable whose proxy calls to this target go through, or None."""
    if is_local(target):
        return None
    variable = next((name for name in _VARIABLES if os.environ.get(name)), None)
    excepted = next((os.environ[name] for name in _EXCEPTIONS if os.environ.get(name)), "")
    host = _host(_FORMS.sub("", target))
    if any(_is_below(host, entry.strip()) for entry in excepted.split(",")):
        return None
    return variable


# the last targets that were opened and are reached through a proxy, for errors of their calls
_proxied: dict[str, None] = {}
_MAX_PROXIED = 8


def note_target(target: str) -> None:
    """Remember a target that is reached through a proxy."""
    if proxy_variable(target) is not None:
        _proxied[target] = None
        while len(_proxied) > _MAX_PROXIED:
            del _proxied[next(iter(_proxied))]


def proxy_hint() -> str:
    """Return advice on the targets of this process that are reached through a proxy, or ""."""
    return "; ".join(filter(None, map(proxy_advice, _proxied)))


def proxy_advice(target: str) -> str:
    """Return a sentence that names the variable, or "" where no proxy is used."""
    variable = proxy_variable(target)
    if variable is None:
        return ""
    return (
        f"calls to {target} go through the proxy of the variable {variable}: "
        f"unset it, or name {_host(_FORMS.sub('', target))} in no_proxy"
    )


def _host(address: str) -> str:
    host, colon, port = address.rpartition(":")
    return (host if colon and port.isdigit() else address).strip("[]")


def _is_loopback(address: str) -> bool:
    host = _host(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_below(host: str, entry: str) -> bool:
    """Whether a host is an entry of no_proxy, below it, or within its network."""
    if not entry:
        return False
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return host == entry or host.endswith(entry if entry.startswith(".") else f".{entry}")

"""The addresses of all replicas of a service, as an option names them."""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import logging
import socket

from services.runtime.process.serve_error import ServeError

log = logging.getLogger("headwise.replicas")


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Address:
    """One replica; `name` is the host that the option named, which its certificate must have."""

    name: str
    ip: str
    port: int

    @property
    def target(self) -> str:
        """The address as a target of gRPC."""
        if ipaddress.ip_address(self.ip).version == 6:
            return f"ipv6:[{self.ip}]:{self.port}"
        return f"ipv4:{self.ip}:{self.port}"


@dataclasses.dataclass(frozen=True, slots=True)
class PeerNames:
    """Hosts and ports of replicas; a host may have many addresses, as a headless Service has."""

    names: tuple[tuple[str, int], ...]

    @classmethod
    def parse(cls, text: str) -> PeerNames:
        """Parse `HOST:PORT`, several with commas. Raises `ServeError`."""
        return cls(tuple(_parse(part.strip()) for part in text.split(",")))

    async def resolve(self) -> list[Address]:
        """Return the addresses that the names have at this moment."""
        found = await asyncio.gather(*(_resolve(host, port) for host, port in self.names))
        return sorted({address for each in found for address in each})


def _parse(text: str) -> tuple[str, int]:
    host, _, port = text.removeprefix("dns:///").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) <= 65535:
        raise ServeError(f"--peers: {text!r} is not HOST:PORT; several are separated by commas")
    return host.strip("[]"), int(port)


async def _resolve(host: str, port: int) -> list[Address]:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        log.warning("--peers: %s cannot be resolved: %s", host, error)
        return []
    return [Address(host, str(address[0]), port) for *_, address in found]

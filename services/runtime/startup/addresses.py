"""Checks of addresses: those that a process listens on, and those that it calls."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

from headwise.target import target_fault
from services.runtime.process.host_address import bare_host
from services.runtime.startup.problem import Problem


def target_problems(option: str, target: str) -> Iterator[Problem]:
    """Problems of the spelling of an address to call."""
    fault = target_fault(target)
    if fault:
        subject = option.removeprefix("--")
        yield Problem(subject, f"{option} {target}: {fault}", "Give HOST:PORT.")


def is_taken(host: str, port: int) -> bool:
    """Whether another process listens there."""
    return _bind_error(host, port) == errno.EADDRINUSE


def listen_problems(host: str, port: int, flag: str = "--port") -> Iterator[Problem]:
    """Problems of an address to listen on; 0 stands for any free port."""
    code = _bind_error(host, port)
    subject = f"port {port}"
    match code:
        case None:
            return
        case errno.EADDRINUSE:
            found = f"{flag} {port}: another process listens on {host}"
            yield Problem(subject, found, f"Choose another {flag}.")
        case errno.EACCES:
            found = f"{flag} {port}: this user may not listen there"
            yield Problem(subject, found, f"Choose a {flag} above 1023.")
        case errno.EADDRNOTAVAIL:
            found = f"--host {host}: no interface of this machine has this address"
            yield Problem(subject, found, "Give 127.0.0.1, 0.0.0.0, or an address of this machine.")
        case _:
            found = f"--host {host}: it cannot be resolved or used"
            yield Problem(subject, found, "Give 127.0.0.1, 0.0.0.0, or an address of this machine.")


def _bind_error(host: str, port: int) -> int | None:
    """The error number of listening there, -1 for a name without an address; None if it works."""
    try:
        found = socket.getaddrinfo(bare_host(host), port, type=socket.SOCK_STREAM)
        family, kind, _, _, address = found[0]
        with socket.socket(family, kind) as listener:
            # as a server would: connections that just ended do not count
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            return None
    except socket.gaierror:
        return -1
    except UnicodeError:
        return -1
    except OSError as error:
        return error.errno

"""`headwise doctor`: checks of a machine and of running services, with advice."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource
from rich.console import Console

from headwise.commands.connection_options import ConnectionFlags, credential_options
from services.doctor.machine_options import MachineOptions
from services.runtime.process.configuration import build, options_of
from services.runtime.process.host_address import host_and_port

if TYPE_CHECKING:
    from services.doctor.finding import Finding
    from services.doctor.peers import Peer

# the default ports of decode and prefill
_PORTS = (7080, 7081)


@click.command()
@click.option(
    "--target",
    "targets",
    multiple=True,
    help="Address of a running prefill or decode, as HOST:PORT; repeatable. The services are "
    "compared with each other.",
)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address on which --port is checked."
)
@click.option(
    "--port",
    "ports",
    type=click.IntRange(1, 65535),
    multiple=True,
    default=_PORTS,
    show_default=True,
    help="Port that must be free, or in use by a service; repeatable.",
)
@options_of(MachineOptions)
@credential_options
def doctor(
    targets: tuple[str, ...],
    host: str,
    ports: tuple[int, ...],
    connection: ConnectionFlags,
    **values: object,
) -> None:
    """Check model, device, ports and running services; exit with 1 if there are problems.

    With --target, this machine's model and device are checked only if --model is given too, and its
    ports only if --port is.
    """
    from services.doctor.finding import Level, findings_table

    findings: list[Finding] = []
    if not targets or _is_given("model"):
        findings += _machine(values)
    if targets and not _is_given("ports"):
        ports = ()
    findings += _services(targets, host, ports, connection)
    Console().print(findings_table(findings))
    problems = sum(finding.level is Level.PROBLEM for finding in findings)
    if problems:
        raise click.ClickException(f"{problems} problem{'s' * (problems > 1)} found")


def _is_given(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) is not ParameterSource.DEFAULT


def _machine(values: dict[str, object]) -> Iterator[Finding]:
    from services.doctor.machine import check_machine

    return check_machine(build(MachineOptions, values))


def _services(
    targets: tuple[str, ...], host: str, ports: tuple[int, ...], flags: ConnectionFlags
) -> Iterator[Finding]:
    """Findings of the targets, and of services that already listen on one of the ports."""
    from services.doctor.machine import port_finding
    from services.doctor.peers import compare, visit

    taken = []
    for port in ports:
        finding = port_finding(host, port)
        if finding is None:
            taken.append(host_and_port(host, port))
        else:
            yield finding
    peers: list[Peer] = []
    for target in dict.fromkeys((*targets, *taken)):
        peer, found = visit(dataclasses.replace(flags, target=target).connection())
        yield from found
        peers += [peer] if peer else []
    yield from compare(peers)

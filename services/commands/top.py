"""`headwise top`: sessions, bytes and rates of running services, updated while it runs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.live import Live

from headwise.commands.connection_options import (
    CLIENT_VARIABLES,
    ConnectionFlags,
    credential_options,
)

if TYPE_CHECKING:
    from services.top.snapshot import Snapshot
    from services.top.watch import Watch

# title, heading, frame and a line for the shell
_LINES_AROUND = 12
_FEWEST_SESSIONS = 5


@click.command()
@click.option(
    "--metrics",
    multiple=True,
    help="Address of the metrics of a prefill or decode, as HOST:PORT; repeatable.",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    envvar=CLIENT_VARIABLES["target"],
    show_envvar=True,
    help="Address of a decode whose sessions are listed, as HOST:PORT; repeatable. The sessions "
    "are those of --tenant.  [default: 127.0.0.1:7080 without --metrics]",
)
@click.option(
    "--every",
    "seconds",
    type=click.FloatRange(0.1, 3600),
    default=2.0,
    show_default=True,
    help="Seconds between two updates; rates are averages over this time.",
)
@click.option(
    "--once", is_flag=True, help="Print one update and exit, with 1 if there are problems."
)
@click.option("--json", "as_json", is_flag=True, help="Print each update as a line of JSON.")
@credential_options
def top(
    metrics: tuple[str, ...],
    targets: tuple[str, ...],
    seconds: float,
    once: bool,
    as_json: bool,
    connection: ConnectionFlags,
) -> None:
    """Show sessions, bytes and rates of running services, until interrupted.

    Counts, bytes and rates come from the services' metrics, and sessions from decode itself. The
    column kept counts sessions in decode and leases in prefill. The column full is the share of the
    pool in use, and dense is the share of the bytes that dense caches would take.
    """
    from services.top.watch import Watch

    if not metrics and not targets:
        targets = ("127.0.0.1:7080",)
    # an address that is given twice is read once
    metrics, targets = tuple(dict.fromkeys(metrics)), tuple(dict.fromkeys(targets))
    connections = [
        dataclasses.replace(connection, target=target).connection() for target in targets
    ]
    with Watch(metrics, connections) as watch:
        if once:
            _show_once(watch, seconds if metrics else 0.0, as_json)
        else:
            with contextlib.suppress(KeyboardInterrupt):
                _show_all(watch, seconds, as_json)


def _show_once(watch: Watch, seconds: float, as_json: bool) -> None:
    if seconds:
        # for the rates
        watch.snapshot()
        time.sleep(seconds)
    snapshot = watch.snapshot()
    if as_json:
        _print_json(snapshot)
    else:
        _print_tables(snapshot)
    if snapshot.problems:
        count = len(snapshot.problems)
        message = f"{count} address{'es' * (count > 1)} did not answer"
        raise click.ClickException(message)


def _show_all(watch: Watch, seconds: float, as_json: bool) -> None:
    if as_json:
        for snapshot in _snapshots(watch, seconds):
            _print_json(snapshot)
        return
    from services.top.tables import snapshot_tables

    console = Console()
    with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        for snapshot in _snapshots(watch, seconds):
            room = (
                console.height - 2 * len(snapshot.services) - len(snapshot.problems) - _LINES_AROUND
            )
            live.update(snapshot_tables(snapshot, max(room, _FEWEST_SESSIONS)), refresh=True)


def _snapshots(watch: Watch, seconds: float) -> Iterator[Snapshot]:
    while True:
        yield watch.snapshot()
        time.sleep(seconds)


def _print_json(snapshot: Snapshot) -> None:
    click.echo(json.dumps(dataclasses.asdict(snapshot)))


def _print_tables(snapshot: Snapshot) -> None:
    from services.top.tables import snapshot_tables

    Console().print(snapshot_tables(snapshot))

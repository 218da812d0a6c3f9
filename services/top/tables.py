"""A snapshot as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from headwise.commands.figures import human_bytes, human_seconds
from services.top.snapshot import ServiceSnapshot, SessionSnapshot, Snapshot

_NOT_KNOWN = "—"


def snapshot_tables(snapshot: Snapshot, most_sessions: int | None = None) -> RenderableType:
    """Services, sessions, and what could not be seen; of the sessions at most so many, the largest
    first."""
    return Group(*_parts(snapshot, most_sessions))


def _parts(snapshot: Snapshot, most: int | None) -> Iterator[RenderableType]:
    if snapshot.services:
        yield _services(snapshot.services)
    if snapshot.sessions or not (snapshot.services or snapshot.problems):
        yield _sessions(sorted(snapshot.sessions, key=lambda one: -one.resident_bytes)[:most])
        hidden = len(snapshot.sessions) - (most or len(snapshot.sessions))
        if hidden > 0:
            yield Text(f"and {hidden} smaller ones")
    for problem in snapshot.problems:
        yield Text(f"{problem.address}: {problem.message}", "bold red")


def _services(services: Sequence[ServiceSnapshot]) -> Table:
    table = _table("services")
    table.add_column("service", no_wrap=True)
    for name in ("calls", "wait", "kept", "resident", "full", "dense"):
        table.add_column(name, justify="right")
    for name in ("tokens per s", "wire per s", "failed per s"):
        table.add_column(name, justify="right")
    for one in services:
        state = "" if one.serving else ", not serving"
        service = Text(f"{one.kind}{state}\n{one.address}", "" if one.serving else "bold red")
        wire = one.wire_bytes_per_second
        table.add_row(
            *(service, f"{one.running}", f"{one.queued}", f"{one.sessions or one.leases}"),
            *(human_bytes(one.resident_bytes), _share(one.resident_bytes, one.capacity_bytes)),
            _share(one.resident_bytes, one.dense_equivalent_bytes),
            *(_rate(one.tokens_per_second), _NOT_KNOWN if wire is None else human_bytes(wire)),
            _rate(one.failures_per_second),
        )
    return table


def _sessions(sessions: Sequence[SessionSnapshot]) -> Table:
    table = _table("sessions")
    table.add_column("session", no_wrap=True)
    # an 80-column terminal has room for one more only where it tells something
    several = len({one.target for one in sessions}) > 1
    for name in ("at", "policy") if several else ("policy",):
        table.add_column(name, no_wrap=True)
    for name in ("tokens", "resident", "dense", "ends in"):
        table.add_column(name, justify="right")
    for one in sessions:
        where = (one.target,) if several else ()
        table.add_row(
            # what a service says of itself must not be read as markup
            *map(Text, (one.session_id, *where, one.policy)),
            *(f"{one.tokens}", human_bytes(one.resident_bytes)),
            _share(one.resident_bytes, one.dense_bytes),
            "busy" if one.busy else human_seconds(one.expires_in_seconds),
        )
    return table


def _table(title: str) -> Table:
    # narrow: 80 columns have to do
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else _NOT_KNOWN


def _rate(value: float | None) -> str:
    return _NOT_KNOWN if value is None else f"{value:.1f}"

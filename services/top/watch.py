"""Looks at several services again and again."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from headwise.connection import Connection
from headwise.errors import HeadwiseError, NotSupported
from headwise.sessions import SessionCalls
from headwise.v1 import decode_pb2_grpc
from services.runtime.process.advice import advice_for
from services.top.metrics_page import MetricsPage, NotReadable, read_metrics
from services.top.snapshot import (
    Problem,
    ServiceSnapshot,
    SessionSnapshot,
    Snapshot,
    service_snapshot,
    session_snapshot,
)


class Watch(contextlib.ExitStack):
    """Keeps channels open, and the last page of each metrics address for the rates."""

    def __init__(self, metrics: Sequence[str], connections: Sequence[Connection]) -> None:
        super().__init__()
        self._metrics = metrics
        self._pages: dict[str, MetricsPage] = {}
        self._decodes = [(one.target, self._sessions(one)) for one in connections]
        # one that does not answer must not hold up the others
        most = len(metrics) + len(connections)
        self._threads = self.enter_context(ThreadPoolExecutor(most))

    def snapshot(self) -> Snapshot:
        """Return a snapshot of all services; no error of a service is raised."""
        services = self._threads.map(self._service, self._metrics)
        sessions = self._threads.map(lambda one: _list(*one), self._decodes)
        found = [*services, *(one for listed in sessions for one in listed)]
        return Snapshot(
            services=tuple(one for one in found if isinstance(one, ServiceSnapshot)),
            sessions=tuple(one for one in found if isinstance(one, SessionSnapshot)),
            problems=tuple(one for one in found if isinstance(one, Problem)),
        )

    def _sessions(self, connection: Connection) -> SessionCalls:
        channel = self.enter_context(connection.open())
        return SessionCalls(decode_pb2_grpc.DecodeServiceStub(channel), connection)

    def _service(self, address: str) -> ServiceSnapshot | Problem:
        try:
            page = read_metrics(address)
        except NotReadable as error:
            return Problem(address, str(error))
        earlier, self._pages[address] = self._pages.get(address), page
        return service_snapshot(address, page, earlier)


def _list(target: str, calls: SessionCalls) -> list[SessionSnapshot | Problem]:
    try:
        return [session_snapshot(target, session) for session in calls.list()]
    except NotSupported:
        return [Problem(target, "there is no decode: give a prefill's metrics, with --metrics")]
    except HeadwiseError as error:
        return [Problem(target, f"{error} {advice_for(error)}")]

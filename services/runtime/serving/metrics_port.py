"""The port of /metrics, in plain HTTP, with few threads and a limit for silent connections."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

# a scrape asks as soon as it is connected
_SILENT_SECONDS = 5.0
# two scrapers and a person; each connection has a thread
_MAX_CONNECTIONS = 16


class MetricsPort:
    """Serves the process's metrics at /metrics until it is closed. Raises `OSError`."""

    def __init__(self, port: int, host: str) -> None:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        kind = type("_Server", (_Server,), {"address_family": family})
        self._server: WSGIServer = make_server(
            str(address[0]), port, _metrics_alone, kind, _Handler
        )
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening; running answers end by themselves."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingMixIn, WSGIServer):
    """Has a thread for each of at most 16 connections: a further one ends the oldest."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # in the order in which they came
        self._connections: dict[socket.socket, None] = {}
        self._changing = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changing:
            if len(self._connections) >= _MAX_CONNECTIONS:
                oldest = next(iter(self._connections))
                del self._connections[oldest]
                # its thread reads the end and closes it
                with contextlib.suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)
            self._connections[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._changing:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of connections that break; the standard library prints a traceback."""


class _Handler(WSGIRequestHandler):
    timeout = _SILENT_SECONDS

    def log_message(self, *arguments: Any) -> None:
        """Say nothing of requests, whose text comes from strangers."""


_Start = Callable[[str, list[tuple[str, str]]], object]
_metrics: Callable[[dict[str, Any], _Start], Iterable[bytes]] = make_wsgi_app()


def _metrics_alone(environ: dict[str, Any], start_response: _Start) -> Iterable[bytes]:
    if environ["PATH_INFO"] in ("/", "/metrics"):
        return _metrics(environ, start_response)
    start_response("404 Not Found", [("Content-Type", "text/plain")])
    return [b"metrics are at /metrics\n"]

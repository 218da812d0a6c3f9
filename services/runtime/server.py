"""The server shell: bind, serve, tell that it is ready, drain on SIGTERM."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pathlib
import signal
from collections.abc import Callable
from wsgiref.simple_server import WSGIServer

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from headwise.channel import server_options
from headwise.v1 import store_pb2
from services.runtime.interceptor import StatusInterceptor
from services.runtime.options import ServerOptions

log = logging.getLogger("headwise.server")

_LAST_STATUS_SECONDS = 0.5
# both processes serve it beside their own
_CACHE_SERVICE = store_pb2.DESCRIPTOR.services_by_name["CacheService"].full_name


class ServeError(Exception):
    """The process cannot serve; the message says why and what to do."""


class Server:
    """A gRPC server with health, reflection, metrics and a drain, for one of our services."""

    def __init__(self, options: ServerOptions, port: int, service: str) -> None:
        self._options = options
        self._service = service
        self._health = health.aio.HealthServicer()
        self._calls = StatusInterceptor()
        self._server = grpc.aio.server(interceptors=[self._calls], options=server_options())
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (service, _CACHE_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        self._port = self._bind(port)
        self._stopping = asyncio.Event()

    def _bind(self, port: int) -> int:
        address = f"{self._options.host}:{port}"
        try:
            bound = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise ServeError(
                f"cannot listen on {address}: is another process there? Choose another --port."
            ) from error
        return bound

    def add(self, register: Callable[[grpc.aio.Server], None]) -> None:
        """Add the service's own handlers."""
        register(self._server)

    async def set_serving(self, serving: bool) -> None:
        """What the health service answers, for the service and for the whole server."""
        answer = health_pb2.HealthCheckResponse
        status = answer.SERVING if serving else answer.NOT_SERVING
        for name in (self._service, ""):
            await self._health.set(name, status)

    def stop(self) -> None:
        """Begin the drain."""
        self._stopping.set()

    async def run(self) -> None:
        """Serve until `stop` or SIGTERM, then let running calls finish within the drain time."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.stop)
        metrics_server = self._start_metrics()
        await self._server.start()
        self._announce(metrics_server.server_port)
        try:
            await self._stopping.wait()
            await self._drain()
        finally:
            # after a drain there is nothing left to do; a server that is dropped while it runs
            # complains when it is collected
            await self._server.stop(None)
            metrics_server.shutdown()
            metrics_server.server_close()

    async def _drain(self) -> None:
        log.info("draining for at most %g s", self._options.drain_seconds)
        await self.set_serving(False)
        stopping = asyncio.create_task(self._server.stop(self._options.drain_seconds))
        idle = asyncio.create_task(self._calls.idle())
        await asyncio.wait((stopping, idle), return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        # the last answer's status is still to be sent
        await asyncio.wait((stopping,), timeout=_LAST_STATUS_SECONDS)
        # what is left is no work of ours: a watch of the health service never ends by itself
        await self._server.stop(None)
        await stopping

    def _start_metrics(self) -> WSGIServer:
        try:
            server, _ = start_http_server(self._options.metrics_port, self._options.host)
        except OSError as error:
            raise ServeError(
                f"cannot serve metrics on {self._options.host}:{self._options.metrics_port}: "
                f"{error.strerror}. Choose another --metrics-port."
            ) from error
        return server

    def _announce(self, metrics_port: int) -> None:
        log.info("%s on %s:%d", self._service, self._options.host, self._port)
        log.info("metrics on http://%s:%d/metrics", self._options.host, metrics_port)
        if self._options.ready_file:
            path = pathlib.Path(self._options.ready_file)
            ports = {"port": self._port, "metrics_port": metrics_port, "pid": os.getpid()}
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(ports))
            temporary.rename(path)

"""The gRPC server of a process: bind, serve, announce readiness, drain on SIGTERM."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pathlib
import signal
from collections.abc import Callable

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from headwise.channel import server_options
from headwise.v1 import replica_pb2, replica_pb2_grpc, store_pb2
from services.runtime.process import metrics
from services.runtime.process.allocator import give_back_freed_memory
from services.runtime.process.host_address import bare_host, host_and_port
from services.runtime.process.options import ServerOptions
from services.runtime.process.serve_error import ServeError
from services.runtime.replicas.addresses import PeerNames
from services.runtime.replicas.peer_credentials import PeerCredentials
from services.runtime.replicas.peers import Peers
from services.runtime.replicas.routing import CallRouter, Routes
from services.runtime.replicas.servicer import ReplicaServicer
from services.runtime.security.authentication import Authentication
from services.runtime.security.security_options import SecurityOptions
from services.runtime.security.tls import server_credentials
from services.runtime.serving.health_service import HealthService
from services.runtime.serving.interceptor import StatusInterceptor
from services.runtime.serving.metrics_port import MetricsPort
from services.runtime.startup.addresses import listen_problems
from services.runtime.startup.problem import require_none

log = logging.getLogger("headwise.server")

# name in the health service for liveness probes: SERVING while the event loop runs, also while
# decode waits for prefill and during a drain, when a restart would lose running calls
LIVE = "live"

_LAST_STATUS_SECONDS = 0.5
# seconds without a call after which freed memory is returned to the kernel
_QUIET_SECONDS = 2.0
# both processes serve these beside their own service
_SHARED_SERVICES = (
    store_pb2.DESCRIPTOR.services_by_name["CacheService"].full_name,
    replica_pb2.DESCRIPTOR.services_by_name["ReplicaService"].full_name,
)


class Server:
    """A gRPC server with health, reflection, metrics and a drain, for one of our services."""

    def __init__(
        self,
        options: ServerOptions,
        security: SecurityOptions,
        port: int,
        service: str,
        routes: Routes | None = None,
    ) -> None:
        self._options = options
        self._service = service
        self._health = HealthService()
        authentication = Authentication(security)
        self._router = _router(options, security, routes or {})
        self._calls = StatusInterceptor(authentication, self._router)
        self._server = grpc.aio.server(
            interceptors=[self._calls], options=server_options(options.max_connection_streams)
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (service, *_SHARED_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        replica_pb2_grpc.add_ReplicaServiceServicer_to_server(ReplicaServicer(), self._server)
        credentials = server_credentials(security)
        self._port = self._bind(self._server, port, "--port", credentials)
        if authentication.required and credentials is None:
            log.warning("tokens arrive in plain text and can be read on the network: configure TLS")
        self._probes, self._health_port = self._probe_server(security.health_port)
        self._stopping = asyncio.Event()
        self._hurried = asyncio.Event()
        self.set_serving(False)

    def _bind(
        self,
        server: grpc.aio.Server,
        port: int,
        flag: str,
        credentials: grpc.ServerCredentials | None,
    ) -> int:
        address = host_and_port(self._options.host, port)
        try:
            if credentials is None:
                return server.add_insecure_port(address)
            return server.add_secure_port(address, credentials)
        except RuntimeError as error:
            # gRPC does not say why
            require_none(listen_problems(self._options.host, port, flag))
            raise ServeError(f"cannot listen on {address}. Choose another {flag}.") from error

    def _probe_server(self, port: int) -> tuple[grpc.aio.Server | None, int | None]:
        """Return a plain-text server of health alone, for probes without certificate or token."""
        if port < 0:
            return None, None
        server = grpc.aio.server(options=server_options())
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        return server, self._bind(server, port, "--health-port", None)

    def add(self, register: Callable[[grpc.aio.Server], None]) -> None:
        """Add the service's own handlers."""
        register(self._server)

    def set_serving(self, serving: bool) -> None:
        """Set the answer of the health service, for the service and for the server."""
        for name in (self._service, ""):
            self._health.set(name, serving=serving)
        metrics.SERVING.set(serving)

    def stop(self) -> None:
        """Begin the drain."""
        self._stopping.set()

    def _interrupt(self) -> None:
        """Begin the drain, or end it at once."""
        if self._stopping.is_set():
            self._hurried.set()
        self.stop()

    async def run(self) -> None:
        """Serve until `stop` or SIGTERM, then let running calls finish within the drain time."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.stop)
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        self._health.set(LIVE, serving=True)
        metrics_server = self._start_metrics()
        for server in self._servers:
            await server.start()
        self._announce(metrics_server.port)
        returning_memory = asyncio.create_task(self._give_memory_back())
        try:
            await self._stopping.wait()
            await self._drain()
        finally:
            returning_memory.cancel()
            # no effect after a drain; after an error it stops the servers, because gRPC logs an
            # exception when a running server is garbage-collected
            for server in self._servers:
                await server.stop(None)
            if self._router is not None:
                await self._router.close()
            metrics_server.close()

    @property
    def _servers(self) -> tuple[grpc.aio.Server, ...]:
        return (self._server, *((self._probes,) if self._probes else ()))

    async def _give_memory_back(self) -> None:
        while True:
            await self._calls.quiet(_QUIET_SECONDS)
            await asyncio.to_thread(give_back_freed_memory)

    async def _drain(self) -> None:
        log.info(
            "draining for at most %g s; Ctrl-C again ends running calls at once",
            self._options.drain_seconds,
        )
        self.set_serving(False)
        stopping = asyncio.create_task(self._server.stop(self._options.drain_seconds))
        idle = asyncio.create_task(self._calls.idle())
        hurried = asyncio.create_task(self._hurried.wait())
        await asyncio.wait((stopping, idle, hurried), return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        hurried.cancel()
        # time to send the status of the last answer
        await asyncio.wait((stopping,), timeout=_LAST_STATUS_SECONDS)
        # remaining calls are those of other services: a watch of the health service never ends
        await self._server.stop(None)
        await stopping

    def _start_metrics(self) -> MetricsPort:
        try:
            server = MetricsPort(self._options.metrics_port, bare_host(self._options.host))
        except OSError as error:
            port = self._options.metrics_port
            require_none(listen_problems(self._options.host, port, "--metrics-port"))
            raise ServeError(
                f"cannot serve metrics on {host_and_port(self._options.host, port)}: "
                f"{error.strerror}. Choose another --metrics-port."
            ) from error
        return server

    def _announce(self, metrics_port: int) -> None:
        host = self._options.host
        log.info("%s on %s", self._service, host_and_port(host, self._port))
        log.info("metrics on http://%s/metrics", host_and_port(host, metrics_port))
        if self._options.ready_file:
            path = pathlib.Path(self._options.ready_file)
            ports = {"port": self._port, "metrics_port": metrics_port, "pid": os.getpid()}
            if self._health_port is not None:
                ports["health_port"] = self._health_port
            temporary = path.with_suffix(".tmp")
            try:
                temporary.write_text(json.dumps(ports))
                temporary.rename(path)
            except OSError as error:
                raise ServeError(f"--ready-file {path}: {error.strerror}") from error


def _router(options: ServerOptions, security: SecurityOptions, routes: Routes) -> CallRouter | None:
    """Return what passes calls on to other replicas; None where no others are known."""
    if not options.peers:
        return None
    names = PeerNames.parse(options.peers)
    return CallRouter(routes, Peers(names, PeerCredentials(names, security)))

"""A name with many addresses is called at all of them, as behind a headless Service."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headwise.channel import channel_options, server_options


class CountedHealth(health_pb2_grpc.HealthServicer):
    """Answers and counts."""

    def __init__(self) -> None:
        self.calls = 0

    def Check(self, request: object, context: object) -> health_pb2.HealthCheckResponse:  # noqa: N802
        self.calls += 1
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


@contextlib.contextmanager
def _running(servicer: CountedHealth) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2), options=server_options())
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def test_calls_go_to_every_address_in_turn_and_past_one_that_is_gone() -> None:
    first, second = CountedHealth(), CountedHealth()
    with _running(second) as there, contextlib.ExitStack() as stack:
        here = stack.enter_context(_running(first))
        target = f"ipv4:{here},{there}"
        with grpc.insecure_channel(target, options=channel_options(retries=False)) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            # the second address may be connected a moment after the first
            for _ in range(200):
                check(health_pb2.HealthCheckRequest(), timeout=5)
            assert min(first.calls, second.calls) > 50
            stack.close()
            codes: collections.Counter[grpc.StatusCode] = collections.Counter()
            for _ in range(20):
                try:
                    check(health_pb2.HealthCheckRequest(), timeout=5, wait_for_ready=True)
                    codes[grpc.StatusCode.OK] += 1
                except grpc.RpcError as error:
                    codes[error.code()] += 1
            # at most the call that meets the closing connection
            assert codes[grpc.StatusCode.OK] >= 19

"""Replicas of both services at fixed ports, which know one another as `--peers`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc

from headwise.v1 import replica_pb2, replica_pb2_grpc
from services.demo.processes import Service, running_service

# several start at once, beside whatever else the machine does
_READY_SECONDS = 500.0


def addresses(ports: Sequence[int]) -> str:
    """The value of `--peers`."""
    return ",".join(f"127.0.0.1:{port}" for port in ports)


@contextlib.contextmanager
def running_replicas(
    name: str, ports: Sequence[int], arguments: Sequence[str]
) -> Iterator[list[Service]]:
    """Run a replica at each port, all started at once."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(len(ports)) as threads:
        own = [*arguments, "--threads", "1", "--peers", addresses(ports)]
        starting = [
            threads.submit(
                stack.enter_context,
                running_service(name, [*own, "--port", str(port)], _READY_SECONDS),
            )
            for port in ports
        ]
        yield [each.result() for each in starting]


def tag_of(target: str) -> str:
    """The tag of the process that listens there."""
    with grpc.insecure_channel(target) as channel:
        stub = replica_pb2_grpc.ReplicaServiceStub(channel)
        answer = stub.DescribeReplica(replica_pb2.DescribeReplicaRequest(), timeout=5)
    return str(answer.replica)

"""The servicer that names this process."""

from __future__ import annotations

from typing import Any

import grpc

from headwise.v1 import replica_pb2, replica_pb2_grpc
from services.runtime.replicas.tag import OWN_TAG


class ReplicaServicer(replica_pb2_grpc.ReplicaServiceServicer):
    """Implements headwise.v1.ReplicaService with the tag of this process."""

    async def DescribeReplica(  # noqa: N802
        self,
        request: replica_pb2.DescribeReplicaRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> replica_pb2.DescribeReplicaResponse:
        return replica_pb2.DescribeReplicaResponse(replica=OWN_TAG)

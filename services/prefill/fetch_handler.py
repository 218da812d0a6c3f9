"""The gRPC handler of FetchCache, whose responses are serialized already."""

from __future__ import annotations

import grpc

from headwise.v1 import store_pb2
from services.prefill.cache_service import CacheServicer

_SERVICE = store_pb2.DESCRIPTOR.services_by_name["CacheService"].full_name


def fetch_handler(caches: CacheServicer) -> grpc.GenericRpcHandler:
    """Return a handler to register before the generated ones, whose FetchCache serializes."""
    handler: grpc.RpcMethodHandler[store_pb2.FetchCacheRequest, bytes]
    handler = grpc.unary_stream_rpc_method_handler(
        caches.FetchCache, request_deserializer=store_pb2.FetchCacheRequest.FromString
    )
    return grpc.method_handlers_generic_handler(_SERVICE, {"FetchCache": handler})

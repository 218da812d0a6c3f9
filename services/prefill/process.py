"""The prefill process: load, serve, drain."""

from __future__ import annotations

import asyncio

from headwise.v1 import prefill_pb2, prefill_pb2_grpc, store_pb2_grpc
from kvstore.errors import UnknownPolicy
from kvstore.policies import parse_policy
from services.prefill.cache_service import CacheServicer
from services.prefill.fetch_handler import fetch_handler
from services.prefill.options import PrefillOptions
from services.prefill.parts import PrefillParts, build_parts
from services.prefill.service import PrefillServicer
from services.prefill.store.store_watch import watch_store
from services.runtime.model.model_options import load_served_model, require_codecs
from services.runtime.process.serve_error import ServeError
from services.runtime.serving.server import Server

_EXPIRY_SECONDS = 0.5


async def serve_prefill(options: PrefillOptions) -> None:
    """Serve until SIGTERM. Raises `ServeError` where the configuration cannot be served."""
    _require_policy(options.default_policy)
    require_codecs(options.model)
    server = Server(
        options.server,
        options.security,
        options.port,
        prefill_pb2.DESCRIPTOR.services_by_name["PrefillService"].full_name,
    )
    served = load_served_model(options.model)
    parts = build_parts(served, options)
    watch_store(parts.store)
    prompts, caches = (
        PrefillServicer(served, parts, options),
        CacheServicer(served, parts, options),
    )
    server.add(
        lambda grpc_server: prefill_pb2_grpc.add_PrefillServiceServicer_to_server(
            prompts, grpc_server
        )
    )
    server.add(lambda grpc_server: grpc_server.add_generic_rpc_handlers((fetch_handler(caches),)))
    server.add(
        lambda grpc_server: store_pb2_grpc.add_CacheServiceServicer_to_server(caches, grpc_server)
    )
    await server.set_serving(True)
    expiring = asyncio.create_task(_expire_leases(parts))
    try:
        await server.run()
    finally:
        expiring.cancel()
        await parts.store.close()


async def _expire_leases(parts: PrefillParts) -> None:
    while True:
        await asyncio.sleep(_EXPIRY_SECONDS)
        parts.store.expire_leases()


def _require_policy(name: str) -> None:
    try:
        parse_policy(name, {})
    except UnknownPolicy as error:
        raise ServeError(f"--default-policy: {error}") from error
